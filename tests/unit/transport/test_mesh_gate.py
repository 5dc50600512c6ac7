"""The door of an inner hop: who comes too late to be served well is told so at once, and by whom that is believed."""

from __future__ import annotations

from contextlib import suppress

import pytest

from deadlinemesh.deadline import DeadlineContext, VirtualClock
from deadlinemesh.errors import NoDeadline, Shed, Unauthenticated
from deadlinemesh.identity.peers import LONGEST_REMEMBERED, MOST_REMEMBERED
from deadlinemesh.transport import Arrival, MeshGate, wire
from deadlinemesh.transport.backlog import TOGETHER, Backlogs

TOKEN = "secret"


def arrived(exact: float | None, native: float | None, token: str = TOKEN) -> DeadlineContext:
    """What the door says to a call that was sent with `exact` seconds left and is taken up with `native`."""
    context = DeadlineContext("acme", 100.0, "free", "0" * 31 + "1", "run-1", 0.0, VirtualClock())
    sent = wire.encode(context, (exact or 0.0) + wire.LEAST_TRANSIT, token)
    arrival = Arrival("/x", [pair for pair in sent if exact is not None or pair[0] != wire.REMAINING_US], 0.0, native)
    return MeshGate("hop-a", TOKEN, VirtualClock())(arrival).context


@pytest.mark.parametrize(("exact", "native"), [(1.0, 1.03), (1.0, 1.0), (1.0, 0.51), (1.0, None), (None, 0.01)])
def test_who_comes_in_time_enters(exact: float | None, native: float | None) -> None:
    assert arrived(exact, native).remaining == pytest.approx(min(one for one in (exact, native) if one is not None))


@pytest.mark.parametrize("native", [0.49, 0.1, 0.0, -0.01])
def test_who_spent_half_its_time_before_it_was_taken_up_is_shed(native: float) -> None:
    with pytest.raises(Shed, match=rf"hop-a is behind: this call waited {(1.0 - native) * 1000:.0f} ms") as shed:
        arrived(1.0, native)
    assert shed.value.retry_after == pytest.approx(1.0 - native)


def test_calls_that_are_taken_up_together_share_the_longest_wait_that_one_of_them_shows() -> None:
    backlogs = Backlogs()
    first, second = backlogs.join(10.0, 0.0), backlogs.join(10.0 + TOGETHER, 0.02)
    assert first is second
    assert backlogs.join(10.1, 0.01).drift(100.0) == 0.02
    assert backlogs.join(10.01 + TOGETHER, 0.0).drift(100.0) == 0.0


def test_no_deadline_is_later_than_a_timeout_may_have_been_rounded_up() -> None:
    assert Backlogs().join(0.0, 0.5).drift(1.0) == pytest.approx(0.045)


def test_what_a_stranger_says_of_its_wait_is_not_believed() -> None:
    gate = MeshGate("hop-a", TOKEN, VirtualClock())
    for token, believed in (("guess", None), (TOKEN, 0.02)):
        context = DeadlineContext("acme", 1.0, "free", "0" * 31 + "1", "run-1", 0.0, VirtualClock())
        arrival = Arrival("/x", wire.encode(context, 1.0 + wire.LEAST_TRANSIT, token), 0.0, 0.98)
        with suppress(Unauthenticated):
            gate(arrival)
        assert (None if arrival.backlog is None else pytest.approx(arrival.backlog.longest_wait)) == believed


def test_a_stranger_is_not_told_how_busy_the_hop_is() -> None:
    with pytest.raises(Unauthenticated):
        arrived(1.0, 0.1, token="guess")


def test_a_call_without_a_deadline_is_refused() -> None:
    with pytest.raises(NoDeadline):
        arrived(None, None)


def test_what_is_remembered_of_peers_has_a_bound_and_of_strangers_there_is_nothing() -> None:
    gate = MeshGate("hop-a", TOKEN, VirtualClock())
    for number in range(2 * MOST_REMEMBERED):
        context = DeadlineContext("acme", 1.0, "free", "0" * 31 + "1", f"run-{number}", 0.0, VirtualClock())
        sent = wire.encode(context, 1.0, TOKEN if number % 2 else "guess")
        with suppress(Unauthenticated):
            assert gate(Arrival("/x", sent, 0.0, 1.0)).context.run_id == context.run_id
        assert len(gate.believed) == min((number + 1) // 2, MOST_REMEMBERED)


@pytest.mark.parametrize("run", ["run-1", "r" * 4096])
def test_a_run_of_any_name_is_believed_each_time(run: str) -> None:
    gate = MeshGate("hop-a", TOKEN, VirtualClock())
    context = DeadlineContext("acme", 1.0, "free", "0" * 31 + "1", run, 0.0, VirtualClock())
    for _ in range(3):
        assert gate(Arrival("/x", wire.encode(context, 1.0, TOKEN), 0.0, 1.0)).context.run_id == run
    assert sum(len(name) for name in gate.believed) <= LONGEST_REMEMBERED
