from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deadlinemesh.tool_runner.arguments import MOST_VIOLATIONS, Arguments

ORDER = {
    "type": "object",
    "properties": {
        "symbol": {"type": "string", "description": "Ticker symbol", "maxLength": 8},
        "items": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"price": {"type": "number", "minimum": 0}},
                "required": ["price"],
            },
        },
        "side": {"$ref": "#/$defs/Side"},
        "count": {"type": "integer", "minimum": 1, "maximum": 9},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
    "required": ["symbol", "side"],
    "additionalProperties": False,
    "$defs": {"Side": {"enum": ["buy", "sell"]}},
}


def wrong(arguments: Any, schema: dict[str, Any] = ORDER) -> list[str]:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return Arguments(schema).read(text)[1]


def test_arguments_that_fit_are_returned() -> None:
    given_ = {"symbol": "ACME", "side": "buy", "items": [{"price": 1.5}], "note": None}
    assert Arguments(ORDER).read(json.dumps(given_)) == (given_, [])


@pytest.mark.parametrize("text", ["", "  \n"])
def test_empty_text_means_no_arguments(text: str) -> None:
    assert Arguments({"type": "object"}).read(text) == ({}, [])


@pytest.mark.parametrize(
    ("arguments", "violation"),
    [
        ({"side": "buy"}, "symbol: missing; give a string of at most 8 characters (Ticker symbol)"),
        ({"symbol": 7, "side": "buy"}, "symbol: 7 does not fit; give a string of at most 8 characters (Ticker symbol)"),
        ({"symbol": "A", "side": "hold"}, 'side: "hold" does not fit; give one of "buy", "sell"'),
        ({"symbol": "A", "side": "buy", "items": [{}]}, "items[0].price: missing; give a number of at least 0"),
        (
            {"symbol": "A", "side": "buy", "items": [{"price": -1}]},
            "items[0].price: -1 does not fit; give a number of at least 0",
        ),
        (
            {"symbol": "A", "side": "buy", "items": 3},
            "items: 3 does not fit; give an array whose items are each a JSON object with price",
        ),
        (
            {"symbol": "A", "side": "buy", "count": 0},
            "count: 0 does not fit; give an integer of at least 1 and of at most 9",
        ),
        ({"symbol": "A", "side": "buy", "note": 1}, "note: 1 does not fit; give a string or null"),
        (
            {"symbol": "A", "side": "buy", "sym": 1},
            "sym: there is no such argument; the arguments are symbol, items, side, count, note",
        ),
    ],
)
def test_each_violation_names_its_place_and_what_would_be_right(arguments: Any, violation: str) -> None:
    assert wrong(arguments) == [violation]


def test_all_violations_are_told_at_once_and_each_once() -> None:
    told = wrong({"items": [{"price": "x"}], "extra": 1})
    assert [line.split(":")[0] for line in sorted(told)] == ["extra", "items[0].price", "side", "symbol"]


def test_malformed_json_is_explained_with_what_would_be_right() -> None:
    (violation,) = wrong('{"symbol": "ACME",')
    assert violation.startswith("arguments: not JSON: Expecting property name enclosed in double quotes")
    assert violation.endswith(
        "give a JSON object with symbol, items (optional), side, count (optional), note (optional)"
    )


@pytest.mark.parametrize("text", ['{"symbol": NaN}', '{"symbol": Infinity}', "[" * 100_000, "9" * 5000, "null", "[1]"])
def test_nothing_a_model_sends_makes_reading_fail(text: str) -> None:
    assert len(wrong(text)) == 1


def test_a_tool_without_arguments_says_so() -> None:
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    assert wrong({"x": 1}, schema) == ["arguments: takes no arguments; give {}"]


def test_a_long_value_is_not_repeated_whole_and_a_long_list_of_errors_is_cut() -> None:
    schema = {"type": "object", "properties": {"xs": {"type": "array", "items": {"type": "integer"}}}}
    told = wrong({"xs": ["y" * 10_000] * 1000}, schema)
    assert len(told) == MOST_VIOLATIONS
    assert all(len(line) < 200 for line in told)


def test_a_schema_cannot_make_the_tool_runner_fetch_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a URL was fetched")

    monkeypatch.setattr("urllib.request.urlopen", fetch)
    schema = {"type": "object", "properties": {"x": {"$ref": "http://example.invalid/schema.json"}}}
    with pytest.raises(ValueError, match=r"example\.invalid"):
        Arguments(schema)


@pytest.mark.parametrize("schema", [{"type": "array"}, {}, {"type": "object", "properties": {"x": {"type": "text"}}}])
def test_what_is_no_schema_of_an_object_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"object|text"):
        Arguments(schema)


@settings(deadline=None)  # how long an example takes says only how busy the machine is
@given(
    text=st.text(max_size=60)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5).map(json.dumps)
)
def test_any_text_is_either_usable_or_explained(text: str) -> None:
    arguments, violations = Arguments(ORDER).read(text)
    assert violations or {"symbol", "side"} <= set(arguments)
