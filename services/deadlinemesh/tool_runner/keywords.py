"""JSON Schema keywords in bounded time: patterns, and the search for equal items.

Without these bounds, a model's arguments could hold the event loop.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from deadlinemesh.errors import shown
from deadlinemesh.policy.patterns import TooLong, faults_of_patterns, pattern_of
from deadlinemesh.tool_runner.outcome import located

__all__ = ["MOST_STEPS_OF_A_CALL", "FormatsInTime", "ValidatorInTime", "bounded", "refuse_patterns"]

MOST_STEPS_OF_A_CALL = 20_000_000
"""Steps that the patterns of one call may take. A step is one character of a text times one unit of
the pattern's weight. So many take 600 ms at worst, in a thread for long arguments.
"""

LONGEST_REGEX = 1000
"""Characters of a text in the `format` regex. Such a text is compiled, and a long one takes long.
"""

_steps_left: ContextVar[int] = ContextVar("_steps_left")

FormatsInTime = FormatChecker(name for name in Draft202012Validator.FORMAT_CHECKER.checkers if name != "regex")


@FormatsInTime.checks("regex", raises=(re.error, RecursionError, OverflowError))
def _is_regex(value: object) -> bool:
    return not isinstance(value, str) or (len(value) <= LONGEST_REGEX and bool(re.compile(value)))


@contextmanager
def bounded() -> Iterator[None]:
    """The block validates the arguments of one call. It may raise TooLong."""
    token = _steps_left.set(MOST_STEPS_OF_A_CALL)
    try:
        yield
    finally:
        _steps_left.reset(token)


def refuse_patterns(schema: Any) -> None:
    """Raise ValueError for a schema with patterns that cannot be matched in linear time."""
    for loc, reason in faults_of_patterns(schema):
        raise ValueError(f"{located(loc)}: {reason}")
    if _holds(schema, "unevaluatedProperties") and _holds(schema, "patternProperties"):
        raise ValueError(
            "unevaluatedProperties would match the names of patternProperties without a bound: write"
            " additionalProperties beside the patternProperties instead"
        )


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if validator.is_type(instance, "string") and not _found(pattern, instance):
        yield ValidationError(f"{shown(instance)} does not match {shown(pattern)}")


def _pattern_properties(
    validator: Any, by_pattern: Mapping[str, Any], instance: Any, schema: Any
) -> Iterator[ValidationError]:
    if validator.is_type(instance, "object"):
        for pattern, subschema in by_pattern.items():
            for name, value in instance.items():
                if _found(pattern, name):
                    yield from validator.descend(value, subschema, path=name, schema_path=pattern)


def _additional_properties(
    validator: Any, subschema: Any, instance: Any, schema: Mapping[str, Any]
) -> Iterator[ValidationError]:
    if not validator.is_type(instance, "object"):
        return
    known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    others = [name for name in instance if name not in known and not any(_found(one, name) for one in patterns)]
    if validator.is_type(subschema, "object"):
        for name in others:
            yield from validator.descend(instance[name], subschema, path=name)
    elif not subschema and others:
        yield ValidationError(f"additional properties: {', '.join(others)}")


def _unique_items(validator: Any, unique: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    # jsonschema compares every pair of items that cannot be sorted. 700 small objects held the
    # event loop for seconds.
    if unique and validator.is_type(instance, "array") and len(set(map(_comparable, instance))) < len(instance):
        yield ValidationError("two items are equal")


def _comparable(value: Any) -> Any:
    """Return a hashable key that is equal for equal JSON values. 1 equals 1.0 but not true."""
    if isinstance(value, list):
        return ("array", *map(_comparable, value))
    if isinstance(value, dict):
        return ("object", frozenset((name, _comparable(inner)) for name, inner in value.items()))
    if isinstance(value, (bool, str)) or value is None:
        return ("", value)
    # As text, because its hash cannot be predicted. A caller could choose whole numbers that all
    # have the same hash, and every lookup would be slow.
    return str(int(value) if isinstance(value, float) and value.is_integer() else value), "number"


ValidatorInTime = extend(  # type: ignore[no-untyped-call]  # the stubs leave it untyped
    Draft202012Validator,
    {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
        "uniqueItems": _unique_items,
    },
)


def _found(source: str, text: str) -> bool:
    pattern = pattern_of(source)
    left = _steps_left.get() - pattern.weight * (1 + len(text))
    _steps_left.set(left)
    if left < 0:
        raise TooLong("there are too many long texts to be held against their patterns; give fewer in one call")
    return pattern.found_in(text)


def _holds(schema: Any, keyword: str) -> bool:
    if isinstance(schema, Mapping):
        return keyword in schema or any(_holds(part, keyword) for part in schema.values())
    return isinstance(schema, list) and any(_holds(part, keyword) for part in schema)
