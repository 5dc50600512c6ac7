"""What a model turn may have of the time that remains follows from what models and tools were seen to take."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deadlinemesh.orchestrator.allotment import SHORT_ANSWER, Allotment, Pace, allot

PACE = Pace(first_token=0.5, per_token=0.02)
SHORT = PACE.taking(SHORT_ANSWER)


def test_where_nothing_is_known_a_turn_may_have_all_and_say_what_policy_allows() -> None:
    assert allot(10.0, Pace(), quickest_tool=0.0, most_tokens=500) == Allotment(10.0, 500, False)
    assert allot(10.0, Pace(), quickest_tool=0.0, most_tokens=0) == Allotment(10.0, 0, False)


def test_the_time_of_a_tool_and_of_an_answer_after_it_is_set_aside() -> None:
    assert allot(10.0, PACE, quickest_tool=2.0, most_tokens=0).window == pytest.approx(10.0 - 2.0 - SHORT)


def test_where_no_tool_is_offered_nothing_is_set_aside() -> None:
    assert allot(10.0, PACE, quickest_tool=None, most_tokens=0).window == 10.0


def test_time_becomes_tokens() -> None:
    assert allot(4.51, PACE, quickest_tool=None, most_tokens=0).max_tokens == 200
    assert allot(4.51, PACE, quickest_tool=None, most_tokens=50).max_tokens == 50


def test_one_token_is_always_asked_for() -> None:
    assert allot(0.1, PACE, quickest_tool=None, most_tokens=0).max_tokens == 1


@pytest.mark.parametrize(("remaining", "wraps_up"), [(2 * SHORT + 2.01, False), (2 * SHORT + 1.99, True), (0.2, True)])
def test_where_only_one_more_short_turn_fits_the_loop_wraps_up(remaining: float, wraps_up: bool) -> None:
    allotment = allot(remaining, PACE, quickest_tool=2.0, most_tokens=0)
    assert allotment.wraps_up is wraps_up
    if wraps_up:
        assert allotment.window == remaining


@example(0.0, 0.0, 0.0, 1.0, 0)
@given(*(st.floats(0.0, 1000.0) for _ in range(3)), st.one_of(st.none(), st.floats(0.0, 1000.0)), st.integers(0, 5000))
def test_a_turn_never_gets_more_than_there_is_nor_less_than_nothing(
    remaining: float, first: float, per_token: float, tool: float | None, most: int
) -> None:
    allotment = allot(remaining, Pace(first, per_token), quickest_tool=tool, most_tokens=most)
    assert 0 <= allotment.window <= remaining
    assert not most or allotment.max_tokens <= most
