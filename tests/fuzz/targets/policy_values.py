"""A policy's values: a line of JSON, which is YAML as well, so that what changes is values and keys and not punctuation."""

from __future__ import annotations

from tests.fuzz.targets import policy

JSON_LINES = True
MAX_BYTES = 8192


def target(data: bytes) -> None:
    policy.target(data.split(b"\n", 1)[0])
