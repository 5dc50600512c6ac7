"""A service dies in mid-run, or stops where it stands and goes on when everything is over."""

from __future__ import annotations

import pytest
from tests.chaos.invariants import REPORTED, SOON, check, lateness
from tests.chaos.mesh import AMPLE, HIT, SPARED, TENANTS, Mesh, Scene
from tests.chaos.plans import fetches, mixed, speaks, uses

from deadlinemesh.telemetry import CallEnded

pytestmark = pytest.mark.asyncio(loop_scope="session")

SERVICES = ("orchestrator", "llm-proxy", "tool-runner")


def _scene(mesh: Mesh, service: str) -> Scene:
    return Scene(mesh, unreachable=TENANTS if service == "orchestrator" else ())


@pytest.mark.parametrize("service", SERVICES)
async def test_budgets_hold_when_a_service_is_killed(mesh: Mesh, service: str) -> None:
    scene = _scene(mesh, service)
    (blocking,) = scene.begin(uses(HIT, "spin", AMPLE, how="sleeps"))
    runs = [blocking, *scene.begin(*mixed(AMPLE))]
    await scene.at_work()
    await blocking.told.wait()
    await scene.kill(service)
    scene.begin(speaks(HIT), fetches(SPARED))
    await scene.over()
    killed_at = mesh.services[service].lives[-2].killed_at
    assert killed_at is not None
    if service == "orchestrator":
        # Nobody is left who wants it. The kernel says so at once, and nothing has to wait for a deadline.
        for run in runs:
            assert run.seen
            assert run.seen.ended_at
            assert lateness(scene, killed_at, run.seen.ended_at) <= REPORTED
        mine = {run.run_id for run in runs}
        for _, event in scene.events:
            if isinstance(event, CallEnded) and event.run_id in mine:
                assert lateness(scene, killed_at, event.ended_at) <= SOON, event
    if service != "llm-proxy":
        assert blocking.pids
        for pid in blocking.pids:
            assert lateness(scene, killed_at, scene.died[pid]) <= REPORTED
    check(scene)


@pytest.mark.parametrize("service", SERVICES)
async def test_budgets_hold_when_a_service_is_stopped_and_goes_on_later(mesh: Mesh, service: str) -> None:
    scene = _scene(mesh, service)
    (blocking,) = scene.begin(uses(HIT, "spin", AMPLE, how="sleeps"))
    scene.begin(*mixed(AMPLE))
    await scene.at_work()
    await blocking.told.wait()
    scene.freeze(service)
    scene.begin(speaks(HIT), fetches(SPARED))
    await scene.answered()
    await scene.settled(but=service)  # each by its own clock: the one that is stopped tells nobody anything
    mesh.thaw()
    await scene.over()
    check(scene)
