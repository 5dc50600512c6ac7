"""A model's arguments against a tool's schema: a line of JSON with the schema, and one with the arguments, or a text with them."""

from __future__ import annotations

import json
from functools import lru_cache

from tests.fuzz.reading import json_lines

from deadlinemesh.errors import MOST_VIOLATIONS
from deadlinemesh.tool_runner.arguments import LONGEST_VIOLATION, ArgumentsReader
from deadlinemesh.tool_runner.outcome import invalid_arguments

JSON_LINES = True
MOST_CHARACTERS = LONGEST_VIOLATION + 100
"""Of one violation."""


def target(data: bytes) -> None:
    schema, value = (*json_lines(data), None, None)[:2]
    arguments = _compiled(json.dumps(schema))
    if arguments is None:
        return
    written = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    given, violations = arguments.read(written)
    assert isinstance(given, dict)
    assert len(violations) <= MOST_VIOLATIONS + 1, len(violations)
    assert all(len(one) <= MOST_CHARACTERS for one in violations)
    invalid_arguments("look", violations)
    if not violations:
        # As the worker is told them, they are as good.
        assert arguments.read(json.dumps(given, allow_nan=False)) == (given, [])
    assert arguments.read(written) == (given, violations)


@lru_cache(maxsize=64)
def _compiled(schema: str) -> ArgumentsReader | None:
    try:
        read = json.loads(schema)
        return ArgumentsReader(read) if isinstance(read, dict) else None
    except (ValueError, RecursionError):
        return None
