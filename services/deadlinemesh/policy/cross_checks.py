"""Finds contradictions between the parts of a policy.

It reads plain values and skips those of a wrong type. So the contradictions of a file are reported
together with its other errors, not after them. Names of tools are not checked: only the tool-runner
knows the tools of Python modules.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

from jsonschema import Draft202012Validator, FormatChecker

from deadlinemesh.policy.model import SHARED, Limits, parse_duration, url_arguments
from deadlinemesh.policy.patterns import faults_of_patterns
from deadlinemesh.policy.problems import Fault, Loc, dotted
from deadlinemesh.policy.pydantic_errors import unknown

__all__ = ["contradictions"]

# Patterns are checked separately, by the engine that will match them.
_FORMATS = FormatChecker(name for name in Draft202012Validator.FORMAT_CHECKER.checkers if name != "regex")
_META_SCHEMA = Draft202012Validator(Draft202012Validator.META_SCHEMA, format_checker=_FORMATS)
_LONGEST_WAY = 10
"""Models of a circle of fallbacks up to which an error names all of them."""
_JSON_TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")


def contradictions(data: Any) -> Iterator[Fault]:
    """Yield every contradiction in the values of a policy file."""
    policy = _mapping(data)
    tiers, models = _mapping(policy.get("tiers")), _mapping(policy.get("models"))
    tenants = {name: _mapping(tenant) for name, tenant in _mapping(policy.get("tenants")).items()}
    yield from _tiers(tiers, _mapping(policy.get("limits")))
    for name, tenant in tenants.items():
        yield from _unknown_names(("tenants", name, "tier"), tenant.get("tier"), tiers, "a tier")
        for index, model in enumerate(_list(tenant.get("models"))):
            yield from _unknown_names(("tenants", name, "models", index), model, models, "a model")
        if name == SHARED and tenant.get("dedicated") is True:
            reason = (
                f"{SHARED} is the name of the pool of all others: give this tenant another name, or leave dedicated out"
            )
            yield Fault(("tenants", name, "dedicated"), reason)
    yield from _shared_keys(tenants)
    yield from _fallbacks(models)
    for name, model in models.items():
        yield from _unknown_names(("models", name, "shortener"), _mapping(model).get("shortener"), models, "a model")
    for name, tool in _mapping(_mapping(policy.get("tools")).get("http")).items():
        yield from _http_tool(("tools", "http", name), _mapping(tool))


def _tiers(tiers: Mapping[str, Any], limits: Mapping[str, Any]) -> Iterator[Fault]:
    defaults = Limits()
    shortest = _seconds(limits.get("shortest_run", defaults.shortest_run))
    reserve = _seconds(limits.get("response_reserve", defaults.response_reserve))
    if shortest is None or reserve is None:
        return
    for name, tier in tiers.items():
        budget = _seconds(_mapping(tier).get("run_budget"))
        if budget is not None and 0 < budget <= shortest + reserve:
            reason = (
                f"a run of {budget:g} s could do nothing: write more than {shortest + reserve:g} s, the sum of "
                f"limits.shortest_run ({shortest:g} s) and limits.response_reserve ({reserve:g} s)"
            )
            yield Fault(("tiers", name, "run_budget"), reason)


def _fallbacks(models: Mapping[str, Any]) -> Iterator[Fault]:
    after = {name: _mapping(model).get("fallback") for name, model in models.items()}
    for name, fallback in after.items():
        yield from _unknown_names(("models", name, "fallback"), fallback, models, "a model")
    for circle in _circles(after):
        for start, name in enumerate(circle):
            way = [*circle[start:], *circle[:start], name] if len(circle) <= _LONGEST_WAY else [name, "…", name]
            reason = f"leads back to where it began, from {' to '.join(way)}: the last model of a chain has no fallback"
            yield Fault(("models", name, "fallback"), reason)


def _circles(after: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield each circle of fallbacks once, as the names in it."""
    seen: set[str] = set()
    for start in after:
        chain: dict[str, None] = {}
        name: Any = start
        while isinstance(name, str) and name in after and name not in seen:
            seen.add(name)
            chain[name] = None
            name = after[name]
        if isinstance(name, str) and name in chain:
            names = list(chain)
            yield names[names.index(name) :]


def _unknown_names(loc: Loc, name: Any, known: Mapping[str, Any], what: str) -> Iterator[Fault]:
    if isinstance(name, str) and known and name not in known:
        yield Fault(loc, unknown(name, known, what))


def _shared_keys(tenants: Mapping[str, Mapping[str, Any]]) -> Iterator[Fault]:
    first: dict[str, Loc] = {}
    for name, tenant in tenants.items():
        for index, key in enumerate(_list(tenant.get("api_keys"))):
            loc = ("tenants", name, "api_keys", index)
            if isinstance(key, str) and (other := first.setdefault(key, loc)) != loc:
                yield Fault(loc, f"is the same key as {dotted(other)}: a key belongs to one tenant, and is listed once")


def _http_tool(loc: Loc, tool: Mapping[str, Any]) -> Iterator[Fault]:
    if _seconds(tool.get("cache_for", 0)) and tool.get("idempotent", False) is False:
        reason = "only an idempotent tool's results may be kept: say idempotent: true, or leave cache_for out"
        yield Fault((*loc, "cache_for"), reason)
    arguments = tool.get("arguments", {"type": "object"})
    if not isinstance(arguments, Mapping):
        return
    inside = (*loc, "arguments")
    reported: set[Loc] = set()
    for error in _META_SCHEMA.iter_errors(arguments):
        where, wrong = (*inside, *error.absolute_path), textwrap.shorten(error.message, 160, placeholder="...")
        if where[-1] == "type" and error.validator == "anyOf":
            wrong = unknown(error.instance, _JSON_TYPES, "a JSON Schema type")
        reported.add(where)
        yield Fault(where, f"is not valid JSON Schema: {wrong}")
    for where, wrong in faults_of_patterns(arguments, inside):
        yield Fault(where, wrong, at_key="patternProperties" in where[-2:-1])
    if arguments.get("type") != "object" and (*inside, "type") not in reported:
        yield Fault((*inside, "type"), "must be object: a tool's arguments have names")
    url = tool.get("url")
    if not isinstance(url, str):
        return
    properties, required = _mapping(arguments.get("properties")), _list(arguments.get("required"))
    if tool.get("method", "GET") == "GET":
        for name, _ in parse_qsl(url.partition("?")[2].partition("#")[0], keep_blank_values=True):
            if name in properties and name not in url_arguments(url):
                reason = f"the URL says what {name} is: write {name}={{{name}}} there, or leave this argument out"
                yield Fault((*inside, "properties", name), reason, at_key=True)
    for name in url_arguments(url):
        if name not in properties:
            yield Fault((*loc, "url"), f"{{{name}}} is no argument; declare it in arguments.properties")
        elif name not in required:
            yield Fault((*loc, "url"), f"{{{name}}} could be missing from a call; list it in arguments.required")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else []


def _seconds(value: Any) -> float | None:
    try:
        return parse_duration(value)
    except ValueError:
        return None
