"""The regular expressions of JSON Schemas, matched in bounded time.

The matched text comes from a model. A backtracking engine can need endless time even for a short
text. So patterns are matched by the engine that comes with pydantic, Rust's `regex`. Its time is
linear in the text and in the pattern. A count makes a pattern long: `[ab]{0,4000}x` takes a minute
for a megabyte. So the product of both lengths is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from pydantic_core import SchemaError, SchemaValidator, core_schema

from deadlinemesh.errors import shown
from deadlinemesh.policy.problems import Loc

__all__ = ["HEAVIEST", "MOST_STEPS", "Pattern", "TooLong", "faults_of_patterns", "pattern_of"]

MOST_STEPS = 1_000_000
"""Bytes of a text times the weight of its pattern. The bound took 30 ms if every step was needed,
else 5 ms."""

HEAVIEST = 2000
"""Largest weight of a pattern. Any text of 500 bytes can be matched against it."""

_LONGEST_SHOWN = 80
"""Characters of a pattern that an error repeats."""

_COUNT = re.compile(r"\{(\d*)(,?)(\d*)\}", re.ASCII)
_CLASS = re.compile(r"\[\^?\]?")
_VERBOSE = re.compile(r"\?[A-Za-z]*x")
_VALUES = ("const", "default", "enum", "examples")
_BY_NAME = ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")


class TooLong(Exception):
    """The text is too long to be matched in bounded time. The message has the allowed length."""


class Pattern:
    """A compiled pattern.

    Raises ValueError with a remedy if the pattern cannot be matched in linear time, or is too
    heavy.
    """

    __slots__ = ("_engine", "source", "weight")

    def __init__(self, source: str) -> None:
        schema = core_schema.str_schema(pattern=source, regex_engine="rust-regex")
        try:
            self._engine = SchemaValidator(schema)
        except SchemaError as error:
            # The reason is in the last line. Those before it draw its place.
            why = str(error).strip().splitlines()[-1].strip().removeprefix("error: ").removeprefix("SchemaError: ")
            raise ValueError(
                f"{shown(source, _LONGEST_SHOWN)} is no pattern that is matched in linear time: {why.rstrip('.')}; write it in the"
                " syntax of RE2, which has neither look-around nor backreferences"
            ) from error
        self.source = source
        self.weight = _weight(source)
        """Places of the pattern that one character may have to be compared with, at most."""
        if self.weight > HEAVIEST:
            raise ValueError(
                f"{shown(source, _LONGEST_SHOWN)} is {self.weight} characters long with its counts written out, and at most"
                f" {HEAVIEST} are matched: write * or + for long counts, and maxLength beside the pattern"
            )

    @property
    def longest(self) -> int:
        """Bytes of UTF-8 that a text may have at most."""
        return MOST_STEPS // self.weight

    def found_in(self, text: str) -> bool:
        """True if the pattern matches anywhere in `text`, as JSON Schema defines it.

        Raises TooLong for more than `longest` bytes.
        """
        encoded = text.encode(errors="replace")  # JSON allows lone surrogates, the engine does not
        if len(encoded) > self.longest:
            raise TooLong(
                f"a text of {len(encoded)} bytes is too long to be held against {shown(self.source, _LONGEST_SHOWN)}; give at most"
                f" {self.longest}"
            )
        return self._engine.isinstance_python(encoded.decode())

    def __repr__(self) -> str:
        return f"<Pattern {self.source!r} weight={self.weight}>"


@lru_cache(maxsize=1024)
def pattern_of(source: str) -> Pattern:
    """The compiled pattern of `source`, from a cache. Raises ValueError like `Pattern`."""
    return Pattern(source)


def faults_of_patterns(schema: Any, loc: Loc = ()) -> Iterator[tuple[Loc, str]]:
    """Yield the place and the reason of each invalid pattern in `schema`.

    `loc` is the schema's place.
    """
    if isinstance(schema, list):
        for index, part in enumerate(schema):
            yield from faults_of_patterns(part, (*loc, index))
    if not isinstance(schema, Mapping):
        return
    if isinstance(pattern := schema.get("pattern"), str):
        yield from _fault_of(pattern, (*loc, "pattern"))
    by_pattern = schema.get("patternProperties")
    for pattern in by_pattern if isinstance(by_pattern, Mapping) else ():
        yield from _fault_of(pattern, (*loc, "patternProperties", pattern))
    for keyword, value in schema.items():
        if keyword in _BY_NAME and isinstance(value, Mapping):
            for name, part in value.items():
                yield from faults_of_patterns(part, (*loc, keyword, name))
        elif keyword not in _VALUES:
            yield from faults_of_patterns(value, (*loc, keyword))


def _fault_of(source: str, loc: Loc) -> Iterator[tuple[Loc, str]]:
    try:
        pattern_of(source)
    except ValueError as error:
        yield loc, str(error)


def _weight(source: str) -> int:
    """The number of places in a pattern for the engine, with counts written out.

    The result is never too low: misread parts are added.
    """
    groups: list[list[int]] = [[]]
    index = 0
    while index < len(source):
        character = source[index]
        count = _COUNT.match(source, index) if character == "{" else None
        if count is not None and groups[-1]:
            groups[-1][-1] *= _most(count)
            index = count.end()
            continue
        index += 1
        if character == "(":
            if _VERBOSE.match(source, index):
                raise ValueError(
                    f"{shown(source, _LONGEST_SHOWN)} has the flag x: write it without spaces and comments"
                )
            groups.append([])
        elif character == ")":
            inside = groups.pop()
            groups[-1].append(1 + sum(inside))
        elif character == "[":
            index = _after_class(source, index - 1)
            groups[-1].append(1)
        elif character == "\\":
            index += 1
            groups[-1].append(1)
        else:
            groups[-1].append(1)
    return max(1, sum(groups[0]))


def _most(count: re.Match[str]) -> int:
    least, open_ended, most = count.groups()
    # Nine digits are far beyond HEAVIEST. int() is slow for very long numbers.
    return max(1, *(int(number[:9] or 0) for number in (least, most))) + bool(open_ended and not most)


def _after_class(source: str, index: int) -> int:
    """The index after the character class that begins at `index`.

    In the engine's syntax a class may contain classes, and a `]` at its beginning is a literal.
    """
    depth = 0
    while True:
        if opening := _CLASS.match(source, index):
            if source[index - 1] == "-" and depth:
                raise ValueError(
                    f"{shown(source, _LONGEST_SHOWN)} has a [ after a - in a class, which can mean two things: write \\["
                )
            depth += 1
            index = opening.end()
        elif source[index] == "]":
            depth -= 1
            index += 1
            if not depth:
                return index
        else:
            index += 2 if source[index] == "\\" else 1
