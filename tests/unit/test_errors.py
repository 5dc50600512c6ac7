"""Words of others as a tenant may read them."""

from __future__ import annotations

import time

import pytest

from deadlinemesh.errors import without_addresses


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("failed to connect: ipv4:127.0.0.1:50052: refused", "failed to connect: … refused"),
        ("at http://crm.internal:8080/v1?key=x it failed", "at … it failed"),
        ("redis://:secret@cache:6379/0", "…"),
        ("lookup of crm.internal:8080 failed", "lookup of … failed"),
        ("10.1.2.3 is away, and so is [::1]:50051", "… is away, and so is …"),
        ("Incorrect API key provided: sk-abcdefgh1234", "Incorrect API key provided: …"),
        ("line 3, column 12: expected a value", "line 3, column 12: expected a value"),
        ("invalid literal for int() with base 10: 'x'", "invalid literal for int() with base 10: 'x'"),
        ("x" * 900, "x" * 500),
    ],
)
def test_addresses_and_keys_are_left_out(words: str, told: str) -> None:
    assert without_addresses(words) == told


@pytest.mark.parametrize("piece", ["a", "a.", "a-", "[", "[a:", "a:", "sk-", "1.", "http:/", "/"])
def test_no_words_take_long(piece: str) -> None:
    began = time.process_time()
    without_addresses(piece * 100_000, 8000)
    assert time.process_time() - began < 1.0
