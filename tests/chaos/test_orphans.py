"""What does not end when it should: none of what obeys, and of what does not, each is reported and soon gone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.chaos.invariants import GONE, REPORTED, SOON, check, lateness
from tests.chaos.mesh import AMPLE, HIT, SHORT, SPARED, Mesh, Plan, Scene
from tests.chaos.plans import calm, fetches, uses, waits
from tests.chaos.processes import GUARD
from tests.chaos.provider import Turn

from deadlinemesh.telemetry import CallStarted, OrphanReported

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_of_what_obeys_nothing_is_left_50_ms_after_the_deadline(mesh: Mesh) -> None:
    scene = Scene(mesh)
    for tenant in (HIT, SPARED):
        scene.faults += ["a run takes longer than it has"] * 6
        scene.begin(
            Plan(tenant, lambda _: (Turn(end="never ends"),)),
            Plan(tenant, lambda _: (Turn(end="stalls"),)),
            fetches(tenant, 60.0),
            fetches(tenant, 60.0),
            waits(tenant, 60.0),
            waits(tenant, 60.0),
        )
    await scene.over()
    for life, event in scene.events:
        if isinstance(event, OrphanReported):  # its age is the machine's doing, or it is an orphan
            deadline = min(
                one.deadline_at
                for other, one in scene.events
                if isinstance(one, CallStarted) and other is life and one.run_id == event.run_id
            )
            assert lateness(scene, deadline, deadline + event.age) <= SOON, event
    check(scene)


async def test_what_clings_is_reported_after_250_ms_and_gone_after_a_second(mesh: Mesh, tmp_path: Path) -> None:
    scene = Scene(mesh, hit={HIT})
    notes = [tmp_path / str(number) for number in range(4)]
    scene.faults += ["a tool clings to its work"] * len(notes)
    runs = scene.begin(*(uses(HIT, "cling", SHORT + 0.5, seconds=0.6, note=str(note)) for note in notes))
    scene.begin(*calm())
    await scene.over()
    reports = {event.run_id: event for _, event in scene.events if isinstance(event, OrphanReported)}
    deadlines = {
        event.run_id: event.deadline_at
        for _, event in scene.events
        if isinstance(event, CallStarted) and event.method.endswith("/CallTool")
    }
    assert set(reports) == {run.run_id for run in runs}
    for run, note in zip(runs, notes, strict=True):
        async with asyncio.timeout(GUARD):
            while not note.exists() or not note.read_text():  # noqa: ASYNC110  # the fact is in another process's file
                await asyncio.sleep(0.02)
        told_at, gone_at = map(float, note.read_text().split())
        deadline, report = deadlines[run.run_id], reports[run.run_id]
        assert (report.hop, report.tenant_id) == ("tool-runner", HIT)
        assert lateness(scene, told_at, told_at + report.age) <= REPORTED
        assert lateness(scene, deadline, told_at) <= SOON
        assert lateness(scene, deadline, gone_at) <= GONE
    check(scene)


async def test_processes_that_do_not_listen_are_killed_with_all_that_they_started(mesh: Mesh) -> None:
    scene = Scene(mesh, hit={HIT})
    ways = ("sleeps", "computes", "takes a shell along")
    scene.faults += [f"a process {way}" for way in ways]
    runs = scene.begin(*(uses(HIT, "spin", AMPLE, how=way) for way in ways))
    scene.begin(*calm())
    await scene.over()
    assert [len(run.pids) for run in runs] == [1, 1, 3]
    check(scene)
