"""How much a burst of refusals holds back depends on how many calls were accepted before it."""

from __future__ import annotations

import random

from deadlinemesh.deadline import DeadlineContext, VirtualClock
from deadlinemesh.errors import Shed
from deadlinemesh.transport.throttling import MOST_KNOWN, Throttling, Watch


class Caller:
    """A tenant that makes `rate` calls a second of a server that accepts or sheds them at once."""

    def __init__(self, rate: float) -> None:
        random.seed(1)  # whether a call is held back is drawn
        self.throttling = Throttling("/x")
        self._rate = rate
        self._clock = VirtualClock()

    def run(self, calls: int, *, accepted: bool, tenant_id: str = "acme") -> int:
        """Make so many calls; how many were sent."""
        context = DeadlineContext(tenant_id, 1e9, "free", f"{1:032x}", "run", 0.0, self._clock)
        sent = 0
        for _ in range(calls):
            self._clock.advance(1 / self._rate)
            try:
                watch = self.throttling.admit(context, "")
            except Shed:
                continue
            sent += 1
            self._ends(watch, accepted)
        return sent

    def burst(self, calls: int, *, accepted: int) -> None:
        """Make so many calls at once, of which the first are accepted."""
        context = DeadlineContext("acme", 1e9, "free", f"{1:032x}", "run", 0.0, self._clock)
        for number, watch in enumerate([self.throttling.admit(context, "") for _ in range(calls)]):
            self._ends(watch, number < accepted)

    def _ends(self, watch: Watch | None, accepted: bool) -> None:
        if watch is not None and accepted:
            watch.answered()
        elif watch is not None:
            watch.shed()


def test_a_burst_of_refusals_among_many_accepted_calls_holds_nothing_back() -> None:
    caller = Caller(rate=200)
    caller.run(200, accepted=True)
    assert caller.run(20, accepted=False) == 20
    assert caller.run(200, accepted=True) == 200


def test_a_burst_of_which_little_is_accepted_is_believed_though_one_call_in_eight_is_watched() -> None:
    caller = Caller(rate=200)
    caller.burst(200, accepted=20)
    assert caller.run(50, accepted=False) < 20


def test_one_refusal_of_a_caller_that_seldom_calls_says_as_little_as_it_is() -> None:
    caller = Caller(rate=1)
    for _ in range(20):
        caller.run(8, accepted=False)
    assert caller.run(100, accepted=True) > 80


def test_who_has_had_nothing_accepted_is_held_back_from_the_first_refusal() -> None:
    caller = Caller(rate=200)
    assert caller.run(200, accepted=False) < 20


def test_refusals_that_go_on_are_believed_however_much_was_accepted() -> None:
    caller = Caller(rate=200)
    caller.run(1000, accepted=True)
    caller.run(200, accepted=False)
    assert caller.run(200, accepted=False) < 60


def test_what_was_accepted_long_ago_counts_no_more() -> None:
    caller = Caller(rate=200)
    caller.run(200, accepted=True)
    caller.run(1, accepted=True, tenant_id="bolt")
    caller._clock.advance(10.0)
    assert caller.run(200, accepted=False) < 20


def test_refusals_that_are_over_leave_what_was_accepted_meanwhile() -> None:
    caller = Caller(rate=200)
    caller.run(20, accepted=False)
    caller.run(2000, accepted=True)  # until they are forgotten
    assert caller.run(200, accepted=True) == 200
    assert caller.run(20, accepted=False) == 20


def test_what_is_known_of_the_calm_has_a_bound() -> None:
    caller = Caller(rate=200)
    for number in range(3 * MOST_KNOWN):
        caller.run(8, accepted=True, tenant_id=f"tenant-{number}")
    assert 0 < len(caller.throttling._calm) <= MOST_KNOWN
