"""Checks a model's arguments against the tool's schema.

A model usually gets its second call right if it reads the error, its place, and a correct form. So
bad arguments raise nothing here. They are explained.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NoReturn

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from deadlinemesh.errors import MOST_VIOLATIONS, shortened, shown
from deadlinemesh.policy.patterns import TooLong, pattern_of
from deadlinemesh.tool_runner.keywords import FormatsInTime, ValidatorInTime, bounded, refuse_patterns
from deadlinemesh.tool_runner.outcome import located

__all__ = ["ArgumentsReader"]

LONGEST_VALUE = 80
"""Characters of a wrong value, or of a name, that an explanation repeats to the model."""

LONGEST_VIOLATION = 2000
"""Characters of one violation."""

_UNREAD = {RecursionError: "they are nested too deeply", OverflowError: "a number is too large for its `multipleOf`"}
_NAMES = {"object": "a JSON object", "array": "an array", "integer": "an integer", "number": "a number"}
_NAMES |= {"string": "a string", "boolean": "true or false", "null": "null"}


class ArgumentsReader:
    """Checks the arguments of one tool. The schema is compiled once.

    Raises ValueError if the schema is not JSON, is not a JSON Schema of an object, or has a pattern
    that cannot be matched in linear time. One schema that is not JSON would fail every request to a
    model.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        for place, number in _not_of_json(schema):
            raise ValueError(f"{located(place)}: {number} is not JSON: write a finite number")
        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            raise ValueError(f"{located(error.absolute_path)}: {error.message}") from error
        if schema.get("type") != "object":
            raise ValueError('the arguments of a tool are an object: write "type": "object"')
        _resolve_all(schema)
        refuse_patterns(schema)
        self._schema = schema
        # An empty registry: no `$ref` can make the tool-runner fetch a URL.
        self._validator = ValidatorInTime(schema, registry=Registry(), format_checker=FormatsInTime)

    def read(self, text: str) -> tuple[dict[str, Any], list[str]]:
        """Return the arguments in `text`, and their violations.

        Use the arguments only if there are no violations. Empty text means `{}`.
        """
        try:
            arguments = json.loads(text if text.strip() else "{}", parse_constant=_refuse, parse_float=_finite)
        except (ValueError, RecursionError) as broken:
            why = _UNREAD.get(type(broken)) or str(broken)
            return {}, [f"arguments: not JSON: {why}; give {self._expected(self._schema)}"]
        violations: dict[str, None] = {}  # an ordered set: errors may repeat an explanation
        try:
            with bounded():
                errors = islice(self._validator.iter_errors(arguments), MOST_VIOLATIONS)
                explained = (one for error in errors for one in self._explained(error))
                for one in islice(explained, MOST_VIOLATIONS):
                    violations[shortened(one, LONGEST_VIOLATION)] = None
        except (TooLong, RecursionError, OverflowError) as unread:
            # These end the whole check. As a plain violation inside `not`, each would let a value
            # pass that was never checked.
            why = _UNREAD.get(type(unread)) or str(unread)
            violations[f"arguments: {why}"] = None
        return arguments if isinstance(arguments, dict) else {}, list(violations)

    def _explained(self, error: ValidationError) -> Iterator[str]:
        place = list(error.absolute_path)
        given: Any = error.instance
        schema: Mapping[str, Any] = error.schema if isinstance(error.schema, Mapping) else {}
        properties = schema.get("properties", {})
        if error.validator == "required":
            for name in schema["required"]:
                if name not in given:
                    yield f"{located([*place, name])}: missing; give {self._expected(properties.get(name, {}))}"
        elif error.validator == "additionalProperties" and (properties or schema.get("patternProperties")):
            patterns = schema.get("patternProperties", {})
            known = ", ".join([*properties, *(f"any that matches {pattern}" for pattern in patterns)])
            for name in given:
                if name not in properties and not any(pattern_of(one).found_in(name) for one in patterns):
                    yield f"{located([*place, name])}: there is no such argument; the arguments are {known}"
        elif error.validator == "additionalProperties":
            yield f"{located(place)}: takes no arguments; give {{}}"
        else:
            yield f"{located(place)}: {shown(given, LONGEST_VALUE, as_json=True)} does not fit; give {self._expected(schema)}"

    def _expected(self, schema: Any, depth: int = 0) -> str:
        """Describe in words the values that fit `schema`."""
        if not isinstance(schema, Mapping) or depth > 3:
            return "a JSON value"
        if reference := schema.get("$ref"):
            name = str(reference).rpartition("/")[2]
            schema = {**self._schema.get("$defs", {}).get(name, {}), **{k: v for k, v in schema.items() if k != "$ref"}}
        description = f" ({schema['description']})" if schema.get("description") else ""
        if "const" in schema:
            return json.dumps(schema["const"]) + description
        if "enum" in schema:
            return "one of " + ", ".join(json.dumps(value) for value in schema["enum"]) + description
        for union in ("anyOf", "oneOf"):
            if union in schema:
                return " or ".join(self._expected(choice, depth + 1) for choice in schema[union]) + description
        kinds = schema.get("type", [])
        kinds = [kinds] if isinstance(kinds, str) else kinds
        words = " or ".join(_NAMES.get(kind, str(kind)) for kind in kinds) or "a JSON value"
        if "array" in kinds and "items" in schema:
            words += f" whose items are each {self._expected(schema['items'], depth + 1)}"
        if "object" in kinds and (properties := schema.get("properties")):
            required = schema.get("required", [])
            words += " with " + ", ".join(n if n in required else f"{n} (optional)" for n in properties)
        bounds = [
            said.format(schema[keyword]) for keyword, said in _BOUNDS.items() if schema.get(keyword, False) is not False
        ]
        return " ".join([words, " and ".join(bounds)]).rstrip() + description


_BOUNDS = {
    "minimum": "of at least {}",
    "exclusiveMinimum": "greater than {}",
    "maximum": "of at most {}",
    "exclusiveMaximum": "less than {}",
    "multipleOf": "that is a multiple of {}",
    "minLength": "of at least {} characters",
    "maxLength": "of at most {} characters",
    "minItems": "with at least {} items",
    "maxItems": "with at most {} items",
    "uniqueItems": "of which no two are equal",
    "pattern": "that matches {}",
    "format": "in the format {}",
}


def _not_of_json(part: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], float]]:
    """Yield the place and the value of each number that is not finite.

    JSON has no such numbers. Other values without a JSON form come neither from pydantic nor from a
    policy.
    """
    if isinstance(part, float) and not math.isfinite(part):
        yield place, part
    elif isinstance(part, Mapping):
        for name, inner in part.items():
            yield from _not_of_json(inner, (*place, name))
    elif isinstance(part, list):
        for index, inner in enumerate(part):
            yield from _not_of_json(inner, (*place, index))


def _resolve_all(schema: Mapping[str, Any]) -> None:
    resolver = Registry().resolver_with_root(DRAFT202012.create_resource(schema))
    for reference in _references(schema):
        try:
            found = resolver.lookup(reference).contents
        except Unresolvable as error:
            raise ValueError(f"{shown(reference)} is not in the schema itself, and nothing is fetched") from error
        try:
            Draft202012Validator.check_schema(found)
        except SchemaError as error:
            raise ValueError(
                f"{shown(reference)} leads to what is no schema: {shortened(error.message, 200)}"
            ) from error


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, Mapping):
        if isinstance(reference := schema.get("$ref"), str):
            yield reference
        schema = list(schema.values())
    if isinstance(schema, list):
        for part in schema:
            yield from _references(part)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{shown(text, LONGEST_VALUE, as_json=True)} is too large a number")
    return number
