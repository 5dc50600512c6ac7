"""Errors of the hops below."""

from __future__ import annotations

import pytest
from tests.support.virtual import in_virtual_time, with_seconds

from deadlinemesh.deadline import entered
from deadlinemesh.errors import (
    ClientCancelled,
    DeadlineSpent,
    DeadlineSpentUpstream,
    Draining,
    MeshError,
    NotFound,
    Shed,
    UpstreamFailed,
    UpstreamRefused,
)
from deadlinemesh.orchestrator.failures import EXPIRES_WITH, first_cause, is_transient


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (UpstreamFailed("down"), True),
        (Shed("busy"), True),
        (Draining("closing"), True),
        (UpstreamRefused("no"), False),
        (DeadlineSpent("spent"), False),
        (NotFound([]), False),
    ],
)
def test_transient_errors_may_be_tried_again(error: MeshError, passes: bool) -> None:
    assert is_transient(error) is passes


@pytest.mark.parametrize("kind", [ClientCancelled, DeadlineSpent])
@in_virtual_time
async def test_leaving_client_and_spent_time_come_before_other_errors(kind: type[MeshError]) -> None:
    first, other = kind("this one"), UpstreamFailed("down")
    with entered(with_seconds(10.0)):
        for errors in ([first, other], [other, first]):
            assert first_cause(ExceptionGroup("", [ExceptionGroup("", [error]) for error in errors])) is first


@in_virtual_time
async def test_leaving_client_comes_before_spent_time() -> None:
    left, spent = ClientCancelled("left"), DeadlineSpent("spent")
    with entered(with_seconds(10.0)):
        assert first_cause(ExceptionGroup("", [spent, left])) is left


@in_virtual_time
async def test_time_spent_below_at_our_deadline_is_ours() -> None:
    below = DeadlineSpentUpstream("spent below", hop="llm-proxy")
    with entered(with_seconds(EXPIRES_WITH / 2)):
        ours = first_cause(ExceptionGroup("", [below]))
    assert type(ours) is DeadlineSpent
    assert ours.hop == "llm-proxy"
    with entered(with_seconds(10.0)):
        assert first_cause(ExceptionGroup("", [below])) is below
