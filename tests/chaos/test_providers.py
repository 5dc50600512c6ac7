"""A model provider misbehaves, for one of two tenants."""

from __future__ import annotations

import pytest
from tests.chaos.invariants import check
from tests.chaos.mesh import HIT, Mesh, Plan, Scene
from tests.chaos.plans import calm
from tests.chaos.provider import End, ToolUse, Turn

from deadlinemesh.telemetry import Retried, RetryRefused
from deadlinemesh.v1 import common_pb2, orchestrator_pb2

pytestmark = pytest.mark.asyncio(loop_scope="session")


def _at_once(end: End, words: int = 0, **more: float) -> Plan:
    """It does so when it is asked first, after so many words."""
    return Plan(HIT, lambda _: (Turn(words, end=end, **more),))  # type: ignore[arg-type]


def _later(end: End, words: int = 2) -> Plan:
    """It does so when the result of a tool is before it."""
    return Plan(
        HIT, lambda run: (Turn(1, tools=(ToolUse("wait", {"run": run, "seconds": 0.05}),)), Turn(words, end=end))
    )


ENDS: tuple[tuple[End, ...], ...] = (
    ("never ends", "stalls"),
    ("breaks off", "resets"),
    ("half a chunk", "garbage"),
)


@pytest.mark.parametrize("ends", ENDS, ids="/".join)
async def test_budgets_hold_whatever_a_provider_sends(mesh: Mesh, ends: tuple[End, ...]) -> None:
    scene = Scene(mesh, hit={HIT})
    for end in ends:
        scene.faults += [f"a provider {end}"] * 3
        scene.begin(_at_once(end), _at_once(end, 3), _later(end))
    scene.begin(*calm())
    await scene.over()
    check(scene)


async def test_who_is_to_wait_for_longer_than_there_is_gives_up_at_once(mesh: Mesh) -> None:
    scene = Scene(mesh, hit={HIT})
    scene.faults += ["429 with a long Retry-After"] * 3
    runs = scene.begin(*[_at_once("is busy", retry_after=30.0)] * 3)
    scene.begin(*calm())
    await scene.over()
    for run in runs:
        assert run.seen
        assert run.seen.finished
        assert run.seen.finished.outcome == orchestrator_pb2.OUTCOME_FAILED
        assert run.seen.finished.cause == common_pb2.CAUSE_SHED
    mine = {run.run_id for run in runs}
    retries = [
        event for _, event in scene.events if isinstance(event, (Retried, RetryRefused)) and event.run_id in mine
    ]
    assert {getattr(event, "refused", "") for event in retries} == {"retry_after"}
    check(scene)


async def test_a_provider_that_fails_once_is_asked_again(mesh: Mesh) -> None:
    scene = Scene(mesh, hit={HIT})
    scene.faults += ["a provider fails", "429 with a short Retry-After", "a provider is down"]
    again = scene.begin(_at_once("fails", 1, times=1), _at_once("is busy", 1, times=1, retry_after=0.1))
    (down,) = scene.begin(_at_once("fails"))
    scene.begin(*calm())
    await scene.over()
    # What the scenarios before it have used up of the upstream's budget is not there for these.
    budget = {
        event.run_id for _, event in scene.events if isinstance(event, RetryRefused) and event.refused == "budget"
    }
    for run in again:
        assert run.seen
        assert run.seen.finished
        completed = run.seen.finished.outcome == orchestrator_pb2.OUTCOME_COMPLETED
        assert completed or run.run_id in budget, run.seen.finished
    assert down.seen
    assert down.seen.finished
    assert down.seen.finished.outcome == orchestrator_pb2.OUTCOME_FAILED
    check(scene)
