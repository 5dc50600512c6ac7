"""The ledger charges each instant to at most one phase, and the charges add up."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deadlinemesh.deadline import Ledger, VirtualClock
from deadlinemesh.vocabulary import Phase, phase_ledger


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(start=100.0)


@pytest.fixture
def ledger(clock: VirtualClock) -> Ledger[Phase]:
    return phase_ledger(clock, clock.monotonic())


def test_new_ledger_has_no_charges(ledger: Ledger[Phase]) -> None:
    assert (ledger.spent(), ledger.elapsed) == ({}, 0.0)


def test_time_outside_any_phase_is_charged_to_none(clock: VirtualClock, ledger: Ledger[Phase]) -> None:
    clock.advance(1.0)
    with ledger.phase(Phase.TOOL_CALL):
        clock.advance(2.0)
    clock.advance(4.0)
    assert (ledger.spent(), ledger.elapsed) == ({Phase.TOOL_CALL: 2.0}, 7.0)


def test_open_phase_is_charged_so_far(clock: VirtualClock, ledger: Ledger[Phase]) -> None:
    ledger.enter(Phase.LLM_QUEUE)
    clock.advance(2.0)
    assert ledger.spent() == {Phase.LLM_QUEUE: 2.0}
    clock.advance(1.0)
    assert ledger.spent() == {Phase.LLM_QUEUE: 3.0}


def test_ledger_may_begin_in_a_phase(clock: VirtualClock) -> None:
    ledger = phase_ledger(clock, clock.monotonic(), opening=Phase.ADMISSION)
    clock.advance(2.0)
    ledger.leave(Phase.ADMISSION)
    clock.advance(1.0)
    assert ledger.spent() == {Phase.ADMISSION: 2.0}


def test_opening_phase_is_charged_since_the_start(clock: VirtualClock) -> None:
    started_at = clock.monotonic()
    clock.advance(1.5)
    ledger = phase_ledger(clock, started_at, opening=Phase.ADMISSION)
    assert ledger.spent() == {Phase.ADMISSION: 1.5}


def test_stream_is_charged_before_a_parallel_tool_call(clock: VirtualClock, ledger: Ledger[Phase]) -> None:
    with ledger.phase(Phase.LLM_STREAM):
        clock.advance(1.0)
        ledger.enter(Phase.TOOL_CALL)
        clock.advance(2.0)
    clock.advance(4.0)
    ledger.leave(Phase.TOOL_CALL)
    assert ledger.spent() == {Phase.LLM_STREAM: 3.0, Phase.TOOL_CALL: 4.0}


@pytest.mark.parametrize(("first", "second"), list(pairwise(Phase)))
def test_phase_order_decides_between_parallel_phases(clock: VirtualClock, first: Phase, second: Phase) -> None:
    for opened in ((first, second), (second, first)):
        ledger = phase_ledger(clock, clock.monotonic())
        for phase in opened:
            ledger.enter(phase)
        clock.advance(1.0)
        assert ledger.spent() == {first: 1.0}


def test_parallel_calls_of_one_phase_are_charged_once(clock: VirtualClock, ledger: Ledger[Phase]) -> None:
    with ledger.phase(Phase.TOOL_CALL):
        with ledger.phase(Phase.TOOL_CALL), ledger.phase(Phase.TOOL_CALL):
            clock.advance(1.0)
        clock.advance(1.0)
    clock.advance(1.0)
    assert ledger.spent() == {Phase.TOOL_CALL: 2.0}


def test_phase_ends_when_its_block_fails(clock: VirtualClock, ledger: Ledger[Phase]) -> None:
    with pytest.raises(LookupError), ledger.phase(Phase.TOOL_CALL):
        raise LookupError
    clock.advance(1.0)
    assert ledger.spent() == {}


def test_balance_never_charges_more_than_the_elapsed_time() -> None:
    class Passing(VirtualClock):
        """A clock that advances at each reading."""

        def monotonic(self) -> float:
            self.advance(0.25)
            return super().monotonic()

    ledger = phase_ledger(Passing(), 0.0, opening=Phase.ADMISSION)
    elapsed, spent = ledger.balance()
    assert (elapsed, spent) == (0.25, {Phase.ADMISSION: 0.25})


def test_each_phase_change_is_reported_once(clock: VirtualClock) -> None:
    told: list[Phase] = []
    ledger = phase_ledger(clock, clock.monotonic(), on_change=told.append)
    with ledger.phase(Phase.TOOL_CALL):
        with ledger.phase(Phase.TOOL_QUEUE):  # no change: the tool call has precedence
            pass
        with ledger.phase(Phase.LLM_STREAM):
            pass
    assert told == [Phase.TOOL_CALL, Phase.LLM_STREAM, Phase.TOOL_CALL]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("enter"), st.sampled_from(Phase)),
        st.tuples(st.just("leave"), st.sampled_from(Phase)),
        st.tuples(st.just("advance"), st.integers(0, 1_000_000)),
        st.tuples(st.just("ask"), st.none()),
    ),
    max_size=60,
)


@given(STEPS)
def test_each_instant_is_charged_once_by_precedence(
    steps: list[tuple[str, Phase | int | None]],
) -> None:
    clock = VirtualClock()
    ledger = phase_ledger(clock, 0.0)
    active: list[Phase] = []
    expected: dict[Phase, float] = {}
    unattributed = 0.0
    for step, value in steps:
        if step == "enter" and isinstance(value, Phase):
            ledger.enter(value)
            active.append(value)
        elif step == "leave" and isinstance(value, Phase):
            if value in active:
                ledger.leave(value)
                active.remove(value)
        elif step == "advance" and isinstance(value, int):
            seconds = value / 1024  # exact in binary, so sums are exact too
            clock.advance(seconds)
            if not active:
                unattributed += seconds
            elif seconds:
                charged = min(active, key=list(Phase).index)
                expected[charged] = expected.get(charged, 0.0) + seconds
        else:
            assert ledger.spent() == expected
    assert ledger.spent() == expected
    assert sum(ledger.spent().values()) + unattributed == ledger.elapsed == clock.monotonic()
