"""How much time the edge grants, and how much of it a run may use."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from deadlinemesh.deadline import VirtualClock
from deadlinemesh.errors import Doomed
from deadlinemesh.identity.grants import Grant
from deadlinemesh.identity.keys import with_fresh_keys
from deadlinemesh.orchestrator import EdgeGate
from deadlinemesh.orchestrator.edge import APART, C_CORE_STRETCH, EXACT_HELD, LEAST_HELD, STAGGER, TOGETHER
from deadlinemesh.orchestrator.spreader import DeadlineSpreader
from deadlinemesh.policy import default_policy
from deadlinemesh.transport import Arrival
from deadlinemesh.transport.wire import REMAINING_US

POLICY, KEYS = with_fresh_keys(default_policy())
RESERVE = POLICY.limits.response_reserve
C_CORE, GO = "grpc-python-asyncio/1.85.1 grpc-c/53.0.0 (linux; chttp2)", "grpc-go/1.80.0"


def grants(
    count: int, seconds: float | None, user_agent: str = C_CORE, tenant: str = "acme", exact_us: object = None
) -> list[Grant]:
    """Grants of calls that arrive at once with this timeout and, unless None, this `deadline-remaining-us`."""
    metadata = [("authorization", f"Bearer {KEYS[tenant]}"), ("user-agent", user_agent)]
    if exact_us is not None:
        metadata.append((REMAINING_US, str(exact_us)))
    generous = {
        name: tier.model_copy(update={"burst": count, "concurrent_calls": count}) for name, tier in POLICY.tiers.items()
    }
    gate = EdgeGate(POLICY.model_copy(update={"tiers": generous}), VirtualClock())
    given = []
    for _ in range(count):
        admitted = gate(Arrival("/deadlinemesh.v1.OrchestratorService/Run", metadata, 0.0, seconds))
        assert admitted.grant is not None
        given.append(admitted.grant)
    return given


def test_a_timeout_of_the_c_core_is_taken_for_as_long_as_it_may_have_been() -> None:
    (given,) = grants(1, 20.0, C_CORE)
    assert given.granted == 20.0
    assert given.due == pytest.approx(20.0 / C_CORE_STRETCH - POLICY.limits.response_reserve)


def test_a_timeout_that_came_as_it_was_given_is_not_shortened_for_what_the_core_does() -> None:
    (given,) = grants(1, 20.0, GO)
    assert given.due == pytest.approx(20.0 - POLICY.limits.response_reserve)


def test_runs_with_the_same_deadline_are_due_apart() -> None:
    given = grants(50, 20.0, GO)
    assert {one.granted for one in given} == {20.0}
    dues = sorted((one.due for one in given), reverse=True)
    assert dues == pytest.approx([20.0 - POLICY.limits.response_reserve - APART * place for place in range(50)])


def test_no_run_gives_more_than_its_part_to_be_apart() -> None:
    given = grants(2000, 20.0, GO)
    latest = 20.0 - POLICY.limits.response_reserve
    assert all(latest * (1 - STAGGER) <= one.due <= latest for one in given)
    crowds = Counter(round(one.due / APART) for one in given)
    assert max(crowds.values()) - min(crowds.values()) <= 1


def test_a_run_that_is_only_just_long_enough_gives_nothing() -> None:
    shortest = POLICY.limits.shortest_run
    assert [one.due for one in grants(3, shortest + POLICY.limits.response_reserve, GO)] == pytest.approx(
        [shortest] * 3
    )


@pytest.mark.parametrize("user_agent", [C_CORE, GO])
def test_a_call_without_a_timeout_has_the_whole_budget_of_its_tier(user_agent: str) -> None:
    (given,) = grants(1, None, user_agent)
    assert (given.granted, given.clipped) == (300.0, False)
    assert given.due == pytest.approx(300.0 - POLICY.limits.response_reserve)


def test_a_longer_timeout_is_clipped() -> None:
    (given,) = grants(1, 1000.0, C_CORE)
    assert (given.granted, given.clipped) == (300.0, True)


def test_the_ends_of_past_runs_are_forgotten() -> None:
    stagger = DeadlineSpreader(0.002)
    for second in range(10_000):
        due = second + 1.0
        assert stagger.place(due, earliest=second + 0.9, latest=due, now=second).at == due
    assert len(stagger) <= 1025


@pytest.mark.parametrize("seconds", [2.0, 20.0, 300.0])
@pytest.mark.parametrize("stretch", [1.0, 1.01, 1.045])
def test_an_exact_value_costs_the_reserve_alone(seconds: float, stretch: float) -> None:
    (given,) = grants(1, seconds * stretch, C_CORE, exact_us=int(seconds * 1e6) - 150)
    assert given.granted == pytest.approx(seconds, abs=0.0002)
    assert given.requested == pytest.approx(seconds, abs=0.0002)
    assert not given.clipped
    assert seconds - given.due <= RESERVE
    assert seconds - given.due == pytest.approx(RESERVE * EXACT_HELD, rel=0.01)


def test_an_exact_value_alone_is_a_deadline() -> None:
    (given,) = grants(1, None, exact_us=5_000_000)
    assert (given.granted, given.requested, given.clipped) == (5.0, 5.0, False)


@pytest.mark.parametrize("native", [None, 1000.0])
def test_an_exact_value_extends_no_tiers_budget(native: float | None) -> None:
    (given,) = grants(1, native, exact_us=400_000_000)
    assert (given.granted, given.clipped) == (300.0, True)
    assert 0 < 300.0 - given.due <= RESERVE


def test_an_exact_value_extends_no_timeout() -> None:
    plain, *others = [grants(1, 20.0, C_CORE, exact_us=exact)[0] for exact in (None, 400_000_000, "9" * 16)]
    for given in others:
        assert (given.granted, given.requested, given.clipped) == (20.0, 20.0, False)
        assert given.due == pytest.approx(plain.due, abs=RESERVE / 5)


def test_time_lost_before_a_call_is_taken_up_is_not_granted() -> None:
    # As much as it shows to have waited may be hidden besides, by the rounding of the timeout.
    (given,) = grants(1, 19.97, C_CORE, exact_us=20_000_000)
    assert given.granted == 19.97
    assert RESERVE / 2 <= 19.94 - given.due <= RESERVE
    (given,) = grants(1, 19.97, GO, exact_us=20_000_000)
    assert RESERVE / 2 <= 19.97 - given.due <= RESERVE


@pytest.mark.parametrize("malformed", ["", "-1", "1e6", "5.5", "1" * 17, "٣", "x" * 8000])
def test_a_malformed_exact_value_changes_nothing(malformed: str) -> None:
    assert grants(1, 20.0, exact_us=malformed) == grants(1, 20.0)


@pytest.mark.parametrize("native", [None, 20.0])
def test_no_run_begins_with_an_exact_value_of_none_left(native: float | None) -> None:
    with pytest.raises(Doomed, match="a deadline of 0 ms leaves 0 ms to work in"):
        grants(1, native, exact_us=0)


def test_exact_deadlines_are_due_apart_inside_the_reserve() -> None:
    room = int((EXACT_HELD - LEAST_HELD) * RESERVE / APART)
    dues = sorted(one.due for one in grants(room, 20.4, C_CORE, exact_us=20_000_000))
    assert all(RESERVE / 2 <= 20.0 - due <= RESERVE for due in dues)
    assert [later - sooner for sooner, later in pairwise(dues)] == pytest.approx([APART] * (room - 1))


def test_a_crowd_of_exact_deadlines_has_the_reserve_first() -> None:
    room = int((EXACT_HELD - LEAST_HELD) * RESERVE / APART)  # or one more, by the rounding of floats
    given = grants(room * TOGETHER + 100, 20.4, C_CORE, exact_us=20_000_000)
    inside, beyond = given[: room * TOGETHER], given[(room + 1) * TOGETHER :]
    assert all(RESERVE / 2 <= 20.0 - one.due <= RESERVE for one in inside)
    assert set(Counter(round(one.due / APART) for one in inside).values()) == {TOGETHER}
    assert all(RESERVE * EXACT_HELD < 20.0 - one.due <= RESERVE + 20.0 * STAGGER for one in beyond)
    assert set(Counter(round(one.due / APART) for one in beyond).values()) == {1}
