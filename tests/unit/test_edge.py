"""How much time the edge grants, and how much of it a run may use."""

from __future__ import annotations

from collections import Counter

import pytest

from deadlinemesh.deadline import VirtualClock
from deadlinemesh.orchestrator import EdgeGate
from deadlinemesh.orchestrator.edge import APART, C_CORE_STRETCH, STAGGER, Grant, current_grant
from deadlinemesh.orchestrator.stagger import Stagger
from deadlinemesh.policy import default_policy, with_fresh_keys
from deadlinemesh.transport import Arrival

POLICY, KEYS = with_fresh_keys(default_policy())
C_CORE, GO = "grpc-python-asyncio/1.85.1 grpc-c/53.0.0 (linux; chttp2)", "grpc-go/1.80.0"


def grants(count: int, seconds: float | None, user_agent: str = C_CORE, tenant: str = "acme") -> list[Grant]:
    """What as many calls are granted that arrive at once with this timeout."""
    metadata = [("authorization", f"Bearer {KEYS[tenant]}"), ("user-agent", user_agent)]
    generous = {
        name: tier.model_copy(update={"burst": count, "concurrent_calls": count}) for name, tier in POLICY.tiers.items()
    }
    gate = EdgeGate(POLICY.model_copy(update={"tiers": generous}), VirtualClock())
    given = []
    for _ in range(count):
        gate(Arrival("/deadlinemesh.v1.OrchestratorService/Run", metadata, 0.0, seconds))
        given.append(current_grant())
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
    stagger = Stagger(0.002)
    for second in range(10_000):
        assert stagger.place(second + 1.0, second + 0.9, second).at == second + 1.0
    assert len(stagger) <= 1025
