"""Pydantic's errors as sentences about a policy, with the error and its remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from deadlinemesh.errors import choices, shown
from deadlinemesh.policy.model import (
    AdmissionPolicy,
    HttpToolPolicy,
    Limits,
    OpenAIModel,
    Policy,
    ScriptedModel,
    TenantPolicy,
    TierPolicy,
    ToolsPolicy,
)
from deadlinemesh.policy.problems import Fault, Loc

__all__ = ["faults_of", "unknown"]

_MODELS: dict[str, type[BaseModel]] = {"scripted": ScriptedModel, "openai": OpenAIModel}
_KEY = "[key]"  # how pydantic marks an error in a mapping's key


def faults_of(error: ValidationError) -> Iterator[Fault]:
    """Yield the errors that pydantic found, without those that only follow from others."""
    for detail in error.errors(include_url=False):
        if detail["type"] == "too_short" and detail["input"]:
            continue  # pydantic does not count invalid items, and reports each of them itself
        yield _fault(detail)


def unknown(value: Any, valid: Iterable[str], what: str = "known") -> str:
    """The error text for a `value` that is not in `valid`, with a guess at the intended one."""
    known = tuple(valid)
    return f"{shown(value)} is not {what}; {_meant(str(value), known)}{choices(known)}"


def _fault(detail: ErrorDetails) -> Fault:
    loc, kind, context = detail["loc"], detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        fields = _fields_at(loc[:-1])
        reason = f"is not a field here; {_meant(str(loc[-1]), fields)}{choices(fields)}"
        return Fault(_without_tag(loc), reason, at_key=True)
    if kind == "union_tag_invalid":
        return Fault((*loc, "provider"), unknown(detail["input"]["provider"], _MODELS))
    if kind == "union_tag_not_found":
        return Fault((*loc, "provider"), f"is missing; {choices(_MODELS)}")
    if loc and loc[-1] == _KEY:
        return Fault(_without_tag(loc[:-1]), _sentence(detail, context), at_key=True)
    return Fault(_without_tag(loc), _sentence(detail, context))


def _sentence(detail: ErrorDetails, context: Mapping[str, Any]) -> str:
    value = detail["input"]
    match detail["type"]:
        case "value_error":
            return str(context["error"])
        case "missing":
            return "is missing"
        case "int_type" | "int_from_float":
            return f"{shown(value)} is not a whole number"
        case "float_type":
            return f"{shown(value)} is not a number"
        case "bool_type":
            return f"{shown(value)} is not true or false"
        case "finite_number":
            return f"{shown(value)} is not a finite number"
        case "greater_than":
            return f"must be more than {context['gt']:g}, not {shown(value)}"
        case "greater_than_equal":
            return f"must be at least {context['ge']:g}, not {shown(value)}"
        case "less_than_equal":
            return f"must be at most {context['le']:g}, not {shown(value)}"
        case "literal_error":
            return unknown(value, (choice.strip("'") for choice in context["expected"].split(" or ")))
        case "string_type":
            # The value is not repeated: it may be an API key without quotes.
            return f"must be a text, not {_kind(value)}{': put it in quotes' if _is_scalar(value) else ''}"
        case "string_too_short" | "too_short":
            return "must not be empty"
        case "tuple_type":
            return f"must be a list such as [a, b], not {_kind(value)}"
        case "dict_type" | "model_type" | "model_attributes_type":
            return f"must be a mapping of keys to values, not {_kind(value)}"
        case _:
            return detail["msg"]


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (bool, int, float))


def _kind(value: Any) -> str:
    match value:
        case None:
            return "empty"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case Mapping():
            return "a mapping"
        case _:
            return "a list"


def _meant(written: str, valid: Iterable[str]) -> str:
    near = difflib.get_close_matches(written.lower(), tuple(valid), n=1)
    return f"did you mean {near[0]}? " if near else ""


def _fields_at(loc: Loc) -> tuple[str, ...]:
    found: type[BaseModel]
    match loc:
        case ():
            found = Policy
        case ("tiers", _):
            found = TierPolicy
        case ("tenants", _):
            found = TenantPolicy
        case ("models", _, str(tag)):
            found = _MODELS[tag]
        case ("tools",):
            found = ToolsPolicy
        case ("tools", "http", _):
            found = HttpToolPolicy
        case ("admission",):
            found = AdmissionPolicy
        case _:
            found = Limits
    return tuple(found.model_fields)


def _without_tag(loc: Loc) -> Loc:
    # Pydantic puts the chosen member of a union into the path: models.demo.scripted.slots.
    return (*loc[:2], *loc[3:]) if loc[:1] == ("models",) else loc
