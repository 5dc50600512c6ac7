from __future__ import annotations

import json
import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deadlinemesh.errors import MOST_VIOLATIONS
from deadlinemesh.tool_runner.arguments import ArgumentsReader

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
    return ArgumentsReader(schema).read(text)[1]


def test_arguments_that_fit_are_returned() -> None:
    given_ = {"symbol": "ACME", "side": "buy", "items": [{"price": 1.5}], "note": None}
    assert ArgumentsReader(ORDER).read(json.dumps(given_)) == (given_, [])


@pytest.mark.parametrize("text", ["", "  \n"])
def test_empty_text_means_no_arguments(text: str) -> None:
    assert ArgumentsReader({"type": "object"}).read(text) == ({}, [])


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
        ArgumentsReader(schema)


@pytest.mark.parametrize("schema", [{"type": "array"}, {}, {"type": "object", "properties": {"x": {"type": "text"}}}])
def test_what_is_no_schema_of_an_object_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"object|text"):
        ArgumentsReader(schema)


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_a_schema_with_a_number_that_json_does_not_have_is_refused_with_its_place(number: float) -> None:
    schema = {"type": "object", "properties": {"x": {"anyOf": [{"type": "null"}, {"maximum": number}]}}}
    with pytest.raises(
        ValueError, match=rf"^properties\.x\.anyOf\[1\]\.maximum: {number} is not JSON: .*finite number"
    ):
        ArgumentsReader(schema)


@given(
    text=st.text(max_size=60)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5).map(json.dumps)
)
def test_any_text_is_either_usable_or_explained(text: str) -> None:
    arguments, violations = ArgumentsReader(ORDER).read(text)
    assert violations or {"symbol", "side"} <= set(arguments)


def text_of(pattern: str, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"x": {"type": "string", "pattern": pattern, **more}}}


HOSTILE = "a" * 5000 + "!"
"""What makes `^(a+)+$` take Python's re more steps than there are atoms."""

BY_NAME = {"type": "object", "patternProperties": {"^(a+)+$": {"type": "integer"}}, "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "arguments", "violation"),
    [
        (text_of("^(a+)+$"), {"x": HOSTILE}, "x: "),
        (text_of(r"^(\w+\s?)*$"), {"x": "word " * 1000 + "!"}, "x: "),
        (BY_NAME, {HOSTILE: 1}, f"{'a' * 77}...: there is no such argument"),
        ({"type": "object", "propertyNames": {"pattern": "^(a+)+$"}}, {HOSTILE: 1}, "arguments: "),
    ],
)
def test_a_hostile_text_is_matched_in_linear_time(schema: dict[str, Any], arguments: Any, violation: str) -> None:
    (told,) = wrong(arguments, schema)
    assert told.startswith(violation)


def test_nothing_matches_a_model_s_text_with_a_backtracking_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [ArgumentsReader(text_of("^(a+)+$")), ArgumentsReader(BY_NAME)]

    def search(*args: Any) -> Any:
        raise AssertionError("Python's re was asked")

    monkeypatch.setattr("re.search", search)
    monkeypatch.setattr("re.match", search)
    assert checks[0].read('{"x": "aaa"}')[1] == []
    assert checks[1].read('{"aaa": 1}')[1] == []
    assert checks[1].read('{"aaa": "b"}')[1] == ['aaa: "b" does not fit; give an integer']


def test_names_that_match_a_pattern_are_not_called_unknown() -> None:
    schema = {**BY_NAME, "properties": {"id": {"type": "string"}}}
    assert wrong({"id": "1", "aa": 2}, schema) == []
    assert wrong({"id": "1", "aa": 2, "b": 3}, schema) == [
        "b: there is no such argument; the arguments are id, any that matches ^(a+)+$"
    ]
    assert wrong({"b": 3}, {**schema, "additionalProperties": {"type": "string"}}) == [
        "b: 3 does not fit; give a string"
    ]


def test_a_text_that_is_too_long_for_its_pattern_is_told_how_long_it_may_be() -> None:
    (told,) = wrong({"x": "a" * 3000}, text_of("^[ab]{0,999}$"))
    assert told.startswith(
        "arguments: a text of 3000 bytes is too long to be held against '^[ab]{0,999}$'; give at most "
    )


def test_a_text_that_is_too_long_for_its_pattern_does_not_pass_where_the_pattern_is_forbidden() -> None:
    schema = {"type": "object", "properties": {"path": {"not": {"pattern": r"\.\."}}}}
    assert wrong({"path": "a/b"}, schema) == []
    assert len(wrong({"path": "a/../b"}, schema)) == 1
    assert len(wrong({"path": "a/../b" + "x" * 1_000_000}, schema)) == 1


def test_many_long_texts_are_bounded_together() -> None:
    pattern = "^[ab]{0,99}$"
    schema = {"type": "object", "properties": {"xs": {"type": "array", "items": {"pattern": pattern}}}}
    assert wrong({"xs": ["ab"] * 10_000}, schema) == []
    (told,) = wrong({"xs": ["ab" * 40] * 10_000}, schema)
    assert told == "arguments: there are too many long texts to be held against their patterns; give fewer in one call"


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        (text_of("(?=a)"), r"properties\.x\.pattern: .*look-around.*RE2"),
        (text_of("[ab]{0,4000}x"), r"properties\.x\.pattern: .*counts"),
        ({**BY_NAME, "unevaluatedProperties": False}, "additionalProperties"),
    ],
)
def test_a_pattern_that_cannot_be_held_to_linear_time_is_refused(schema: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ArgumentsReader(schema)


def test_an_array_that_may_have_equal_items_is_not_said_to_have_none() -> None:
    schema = {"type": "object", "properties": {"x": {"type": "array", "uniqueItems": False, "minItems": 0}}}
    assert wrong({"x": 1}, schema) == ["x: 1 does not fit; give an array with at least 0 items"]


UNIQUE = {"type": "object", "properties": {"x": {"type": "array", "uniqueItems": True}}}


@pytest.mark.parametrize(
    ("items", "unique"),
    [
        ([1, True, "1", None, "null", [1], [[1]], {"a": 1}, {"a": [1]}, 0, False], True),
        ([1, 1.0], False),
        ([True, True], False),
        ([{"a": 1, "b": 2}, {"b": 2, "a": 1.0}], False),
        ([[1, {"a": None}], [1, {"a": None}]], False),
        ([["a", "b"], ["b", "a"]], True),
        ([{"a": index} for index in range(20_000)], True),
        ([*({"a": index} for index in range(20_000)), "x", {"a": 7}], False),
        ([1e20, 10**20], False),
        ([1.5, 1.5], False),
        ([10**300, 10**300 + 1, 1e300, 0.5, "0.5"], True),
        ([index * (2**61 - 1) for index in range(20_000)], True),  # Python's hash of each is 0
    ],
)
def test_equal_items_are_found_without_comparing_every_two(items: list[Any], unique: bool) -> None:
    began = time.process_time()
    told = wrong({"x": items}, UNIQUE)
    assert time.process_time() - began < 2  # every two of 20,000 take seven seconds
    assert [one.endswith("give an array of which no two are equal") for one in told] == ([] if unique else [True])


@pytest.mark.parametrize("text", ["(" * 900, "a" * 2000, "("])
def test_a_text_in_the_format_regex_is_looked_at_only_so_far(text: str) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "string", "format": "regex"}}}
    assert len(wrong({"x": text}, schema)) == 1
    assert wrong({"x": "a+"}, schema) == []


def test_a_schema_that_goes_round_does_not_run_out_of_stack() -> None:
    schema = {"type": "object", "properties": {"x": {"$ref": "#"}}}
    (told,) = wrong('{"x": ' * 500 + "{}" + "}" * 500, schema)
    assert told == "arguments: they are nested too deeply"


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 4000])
def test_a_number_that_cannot_be_calculated_with_is_explained(number: str) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "number", "multipleOf": 0.1}}}
    (told,) = wrong(f'{{"x": {number}}}', schema)
    assert "too large" in told


def test_an_infinite_number_is_not_json() -> None:
    (told,) = wrong('{"x": 1e999}', {"type": "object"})
    assert told.startswith('arguments: not JSON: "1e999" is too large a number')
