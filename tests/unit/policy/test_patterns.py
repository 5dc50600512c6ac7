from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deadlinemesh.policy.patterns import HEAVIEST, MOST_STEPS, Pattern, TooLong, faults_of_patterns


@pytest.mark.parametrize(
    ("source", "weight"),
    [
        ("", 1),
        ("abc", 3),
        ("a{3}b", 4),
        ("a{2,}b", 4),
        ("[ab]{0,400}x", 401),
        ("(ab{3}){10}", 50),
        ("a{10}{10}", 100),
        ("[]a]{50}", 50),
        ("[^]a]{50}", 50),
        ("[[](]a]{50}", 50),
        ("[(]{4}[)]{4}", 8),
        (r"\({4}\)", 5),
        ("^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", 41),
    ],
)
def test_a_pattern_weighs_what_it_is_with_its_counts_written_out(source: str, weight: int) -> None:
    assert Pattern(source).weight == weight


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("(?=a)b", "look-around"),
        (r"(a)\1", "backreferences"),
        ("(", "unclosed group"),
        (r"a\Z", "unrecognized escape sequence"),
        ("[ab]{0,4000}x", "4001 characters long"),
        ("(a{1000}){1000}", "exceeds size limit"),
        ("(?x) a {9} # (", "has the flag x"),
        ("[+-[a]{50}", "write \\["),
    ],
)
def test_a_pattern_that_cannot_be_held_to_linear_time_is_refused_with_what_would_be_right(
    source: str, why: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(why)) as refused:
        Pattern(source)
    assert "write" in str(refused.value)
    assert len(str(refused.value)) < 300


def test_a_pattern_is_looked_for_anywhere_in_a_text() -> None:
    pattern = Pattern(r"\d+$")
    assert pattern.found_in("room 12")
    assert not pattern.found_in("12 rooms")
    assert not pattern.found_in("12\ud800")


def test_no_text_is_matched_in_more_steps_than_are_allowed() -> None:
    pattern = Pattern("[ab]{0,999}x")
    assert pattern.longest * pattern.weight <= MOST_STEPS
    assert not pattern.found_in("a" * pattern.longest)
    with pytest.raises(TooLong, match=f"a text of {pattern.longest + 1} bytes .* give at most {pattern.longest}"):
        pattern.found_in("a" * (pattern.longest + 1))
    with pytest.raises(TooLong):
        pattern.found_in("é" * pattern.longest)


def test_every_pattern_can_be_held_against_a_text_of_some_length() -> None:
    assert MOST_STEPS // HEAVIEST >= 500


def test_patterns_are_found_wherever_a_schema_may_hold_one_and_nowhere_else() -> None:
    bad: dict[str, Any] = {"type": "string", "pattern": "("}
    schema = {
        "properties": {
            "pattern": {"type": "string"},
            "default": bad,
            "xs": {"items": bad, "default": {"pattern": "("}},
        },
        "patternProperties": {"[": {"anyOf": [{}, bad]}},
        "$defs": {"one": bad},
        "else": {"propertyNames": bad},
        "const": {"pattern": "("},
    }
    assert {loc for loc, _ in faults_of_patterns(schema)} == {
        ("properties", "default", "pattern"),
        ("properties", "xs", "items", "pattern"),
        ("patternProperties", "["),
        ("patternProperties", "[", "anyOf", 1, "pattern"),
        ("$defs", "one", "pattern"),
        ("else", "propertyNames", "pattern"),
    }


PIECES = [
    "a",
    "b",
    "(",
    ")",
    "[",
    "]",
    "^",
    "-",
    r"\d",
    r"\p{L}",
    "{2}",
    "{0,3}",
    "{2,}",
    "*",
    "?",
    "|",
    "&&",
    "[:alpha:]",
]
PIECES += ["(?:", "(?i)", "(?P<n>", ".", r"\]", r"\[", r"\x{41}", "é", "(?x)", "#"]


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | st.text(max_size=20))
def test_any_text_is_a_pattern_or_refused_in_words(source: str) -> None:
    try:
        pattern = Pattern(source)
    except ValueError:
        return
    assert 1 <= pattern.weight <= HEAVIEST
