"""Clients that go, are killed, fall silent or stop reading: what was done for them stops."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from tests.chaos.invariants import REPORTED, SOON, check, lateness
from tests.chaos.mesh import HIT, KEEPALIVE, ROOT, Mesh, Plan, Run, Scene
from tests.chaos.plans import calm, fetches, uses, waits
from tests.chaos.provider import Script, Turn
from tests.chaos.toxics import Toxic
from tests.support.seen import Seen

from deadlinemesh.telemetry import CallEnded
from deadlinemesh.v1 import orchestrator_pb2

pytestmark = pytest.mark.asyncio(loop_scope="session")

LONG = 2.5
"""Seconds that there would have been, had they stayed."""


def _forever() -> list[Plan]:
    return [
        Plan(HIT, lambda _: (Turn(end="never ends"),), LONG),
        Plan(HIT, lambda _: (Turn(end="stalls"),), LONG),
        fetches(HIT, 60.0, LONG),
        waits(HIT, 60.0, LONG),
        uses(HIT, "spin", LONG, how="sleeps"),
    ]


async def test_what_is_done_for_a_client_that_hangs_up_stops(mesh: Mesh) -> None:
    scene = Scene(mesh, hit={HIT})
    runs = scene.begin(*_forever())
    scene.begin(*calm())
    await scene.at_work()
    await runs[-1].told.wait()
    for run in runs:
        scene.faults.append("a client hangs up")
        run.leave()
    await scene.over()
    check(scene)


class Client:
    """A client in a process of its own."""

    def __init__(self, scene: Scene, run: Run, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.run = run
        self._scene = scene
        self._reading = asyncio.ensure_future(self._read())
        self._began_at = time.monotonic()

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self._scene.hear(self.run, orchestrator_pb2.RunResponse.FromString(base64.b64decode(line)))
        self.run.at_work.set()
        self.run.told.set()

    async def kill(self) -> None:
        self.run.left_at = self.run.left_at or time.monotonic()
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self._reading
        self.run.seen = Seen(
            *(self.run.number, False, False, self._began_at, None, self.run.left_at, tuple(self.run.heard)),
            *(time.monotonic(), "CANCELLED", ""),
        )


@asynccontextmanager
async def _client(scene: Scene, plan: Plan) -> AsyncIterator[Client]:
    mesh = scene.mesh
    run = scene.join(Run(mesh.plan_number(), plan, False))
    prompt = Script(run.number, plan.turns(run.number)).prompt()
    address, key = mesh.proxies[f"edge of {plan.tenant}"].address, mesh.key(plan.tenant)
    path = os.pathsep.join((ROOT, *sys.path))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.chaos.client", address, key, str(plan.timeout or 0), prompt),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": path},
    )
    client = Client(scene, run, process)
    try:
        yield client
    finally:
        await client.kill()


async def test_what_is_done_for_a_client_that_is_killed_stops(mesh: Mesh) -> None:
    scene = Scene(mesh, hit={HIT})
    talks, uses_a_process = _forever()[0], _forever()[-1]
    async with _client(scene, talks) as one, _client(scene, uses_a_process) as other:
        await scene.at_work()
        await other.run.told.wait()
        scene.begin(*calm())
        scene.faults += ["a client is killed"] * 2
        await one.kill()
        await other.kill()
    await scene.over()
    check(scene)


async def test_what_is_done_for_a_client_that_fell_silent_stops_when_it_gives_no_sign_of_life(mesh: Mesh) -> None:
    scene = Scene(mesh, hit={HIT}, unreachable={HIT})
    plans = [Plan(HIT, plan.turns, None) for plan in _forever()]  # the tier's budget is longer than anybody's patience
    runs = scene.begin(*plans)
    scene.begin(*calm())
    await scene.at_work()
    await scene.suffer(
        f"edge of {HIT}",
        "silence",
        (Toxic("timeout", "upstream", {"timeout": 0}), Toxic("timeout", "downstream", {"timeout": 0})),
    )
    silent_at = time.monotonic()
    await scene.settled()
    for run in runs:
        run.leave()  # nobody would ever tell it
    await scene.over()
    mine = {run.run_id for run in runs}
    for _, event in scene.events:
        if isinstance(event, CallEnded) and event.run_id in mine:
            due = min(event.deadline_at, silent_at + 2 * KEEPALIVE + REPORTED)
            assert lateness(scene, due, event.ended_at) <= SOON, event
    check(scene)


async def test_what_is_done_for_a_client_that_does_not_read_any_more_stops_in_time(mesh: Mesh) -> None:
    scene = Scene(mesh, hit={HIT}, unreachable={HIT})
    pours = Plan(HIT, lambda _: (Turn(every=0.0005, end="never ends"),), LONG)
    async with _client(scene, pours) as client:
        await scene.at_work()
        scene.begin(*calm())
        scene.faults.append("a client is stopped")
        client.process.send_signal(signal.SIGSTOP)
        await scene.answered()
        await scene.settled()
    client.run.left_at = None
    await scene.over()
    check(scene)
