"""How much time the edge grants, and how much of it a run may use."""

from __future__ import annotations

import pytest

from deadlinemesh.deadline import VirtualClock
from deadlinemesh.orchestrator import EdgeGate
from deadlinemesh.orchestrator.edge import C_CORE_SPREAD, C_CORE_STRETCH, Grant, current_grant
from deadlinemesh.policy import default_policy, with_fresh_keys
from deadlinemesh.transport import Arrival
from deadlinemesh.transport.wire import Identity

POLICY, KEYS = with_fresh_keys(default_policy())
C_CORE, GO = "grpc-python-asyncio/1.85.1 grpc-c/53.0.0 (linux; chttp2)", "grpc-go/1.80.0"


def grant(seconds: float | None, user_agent: str, jitter: float = 0.0, tenant: str = "acme") -> Grant:
    """What a call with this timeout is granted."""
    metadata = {"authorization": f"Bearer {KEYS[tenant]}", "user-agent": user_agent}
    nobody = Identity("", "", "", "", "")
    gate = EdgeGate(POLICY, VirtualClock(), jitter=lambda: jitter)
    gate(Arrival("/deadlinemesh.v1.OrchestratorService/Run", metadata, seconds, nobody, seconds, 0.0))
    return current_grant()


@pytest.mark.parametrize("jitter", [0.0, 0.25, 1.0])
def test_runs_whose_timeouts_the_core_bunched_are_due_apart(jitter: float) -> None:
    given = grant(20.0, C_CORE, jitter)
    assert given.granted == 20.0
    due = 20.0 / (C_CORE_STRETCH + C_CORE_SPREAD * jitter) - POLICY.limits.response_reserve
    assert given.due == pytest.approx(due)


def test_a_timeout_that_came_as_it_was_given_is_not_shortened_for_what_the_core_does() -> None:
    assert grant(20.0, GO, 1.0).due == pytest.approx(20.0 - POLICY.limits.response_reserve)


@pytest.mark.parametrize("user_agent", [C_CORE, GO])
def test_a_call_without_a_timeout_has_the_whole_budget_of_its_tier(user_agent: str) -> None:
    given = grant(None, user_agent, 1.0)
    assert (given.granted, given.clipped) == (300.0, False)
    assert given.due == pytest.approx(300.0 - POLICY.limits.response_reserve)


def test_a_longer_timeout_is_clipped() -> None:
    given = grant(1000.0, C_CORE)
    assert (given.granted, given.clipped) == (300.0, True)
