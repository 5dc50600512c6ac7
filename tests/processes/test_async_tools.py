"""What an async tool leaves behind is its call's: found, reported and ended, and it holds up no drain."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.chaos.processes import GUARD, Service, alive
from tests.support.up import environment

from deadlinemesh.deadline import SYSTEM_CLOCK, DeadlineContext, entered
from deadlinemesh.telemetry import OrphanReported
from deadlinemesh.transport import mesh_channel
from deadlinemesh.v1 import tool_runner_pb2, tool_runner_pb2_grpc

pytestmark = pytest.mark.processes

WAYS = ["session", "bare", "family", "daemon", "popen", "spawn", "thread"]

POLICY: dict[str, Any] = {
    "tiers": {"free": {"run_budget": 60, "iterations": 2}},
    "tenants": {
        name: {"tier": "free", "api_keys": [f"sha256:{number:064x}"]} for number, name in enumerate(("acme", "bolt"))
    },
    "models": {"scripted": {"provider": "scripted"}},
    "tools": {"modules": ["tests.support.async_tools", "tests.support.blocking_tools"]},
}


class ToolRunner:
    """`dmesh serve tool-runner` with the tools of `tests.support.async_tools`."""

    def __init__(self, folder: Path, policy: dict[str, Any] = POLICY, **variables: str) -> None:
        (folder / "policy.yaml").write_text(json.dumps(policy))
        own = environment(folder / "up.json") | {
            "DMESH_LISTEN": "127.0.0.1:0",
            "DMESH_POLICY_FILE": str(folder / "policy.yaml"),
            "DMESH_MESH_TOKEN": "secret-of-the-mesh",
            **variables,
        }
        own["PYTHONPATH"] = os.pathsep.join((own["PYTHONPATH"], str(Path(__file__).parents[2])))
        self.service = Service("tool-runner", folder, own)

    async def start(self) -> None:
        life = await self.service.start()
        self._channel = mesh_channel(
            f"127.0.0.1:{life.port}",
            mesh_token="secret-of-the-mesh",
            message_bytes=1_000_000,
            keepalive=20.0,
            healthy="deadlinemesh.v1.ToolRunnerService",
        )
        self._stub: Any = tool_runner_pb2_grpc.ToolRunnerServiceStub(self._channel)

    async def close(self) -> None:
        await self._channel.close()
        await self.service.end()

    async def events(
        self, name: str, tenant: str = "acme", run: str = "run-1", seconds: float = GUARD, **arguments: Any
    ) -> AsyncIterator[tool_runner_pb2.CallToolResponse]:
        """Call a tool; what it tells."""
        now = SYSTEM_CLOCK.monotonic()
        request = tool_runner_pb2.CallToolRequest(name=name, arguments_json=json.dumps(arguments))
        with entered(DeadlineContext(tenant, now + seconds, "free", "0" * 32, run, now)):
            call = self._stub.CallTool(request)
        async for event in call:
            yield event

    async def call(self, name: str, tenant: str = "acme", run: str = "run-1", **arguments: Any) -> str:
        """Call a tool; its result."""
        events = [event async for event in self.events(name, tenant, run, **arguments)]
        content: str = events[-1].result.content
        return content

    async def cut(self, name: str, seconds: float = 1.0, **arguments: Any) -> str:
        """Call a tool that does not end in time; what it told."""
        told = ""
        with pytest.raises(grpc.aio.AioRpcError):  # noqa: PT012  # what it tells until then is wanted
            async for event in self.events(name, seconds=seconds, **arguments):
                told = event.progress.message or told
        return told

    async def orphans(self, count: int) -> list[OrphanReported]:
        """What has been reported, once it is as much."""
        async with asyncio.timeout(GUARD):
            while True:
                found = [one for one in self.service.life.read() if isinstance(one, OrphanReported)]
                if len(found) >= count:
                    return found
                await asyncio.sleep(0.02)  # the fact is in another process's file


@pytest.fixture
async def runner(tmp_path: Path) -> AsyncIterator[ToolRunner]:
    one = ToolRunner(tmp_path)
    await one.start()
    yield one
    await one.close()


async def gone(pids: list[int]) -> None:
    """Return when none of these processes is alive."""
    async with asyncio.timeout(GUARD):
        while any(map(alive, pids)):  # noqa: ASYNC110  # nobody else is told of the end of another's processes
            await asyncio.sleep(0.02)


def pids_of(told: str) -> list[int]:
    return [int(pid) for pid in told.split()]


@pytest.mark.parametrize("how", WAYS)
async def test_processes_left_by_a_call_are_reported_and_killed(runner: ToolRunner, how: str) -> None:
    pids = json.loads(await runner.call("start", how=how))["pids"]
    await gone(pids)
    orphans = await runner.orphans(len(pids))
    assert {(one.hop, one.tenant_id, one.run_id) for one in orphans} == {("tool-runner", "acme", "run-1")}
    assert len(orphans) == len(pids)
    assert all(any(f"process {pid} (" in one.task for one in orphans) for pid in pids)
    async with asyncio.timeout(GUARD):
        while set(map(str, pids)) & set(os.listdir("/proc")):  # noqa: ASYNC110  # zombies too
            await asyncio.sleep(0.02)
    assert await runner.call("count") == "[1,2]"  # the keeper was spared


@pytest.mark.parametrize("how", WAYS)
async def test_processes_of_a_cut_call_end_with_it(runner: ToolRunner, how: str) -> None:
    pids = pids_of(await runner.cut("keep", how=how))
    assert pids
    await gone(pids)
    assert {one.run_id for one in await runner.orphans(len(pids))} == {"run-1"}


async def test_a_call_ends_only_its_own_processes(runner: ToolRunner) -> None:
    staying = runner.events("keep", "bolt", "run-2", how="family")
    told = ""
    while not told:
        told = (await anext(staying)).progress.message
    pids = json.loads(await runner.call("start", how="family"))["pids"]
    await gone(pids)
    assert {one.tenant_id for one in await runner.orphans(3)} == {"acme"}
    assert all(map(alive, pids_of(told)))


async def test_a_tool_that_ends_its_process_itself_is_not_reported(runner: ToolRunner) -> None:
    pids = pids_of(await runner.cut("tidy"))
    await gone(pids)
    await runner.call("start", how="session")
    assert "sleep" in (await runner.orphans(1))[0].task
    assert not any(f"process {pid} " in one.task for one in await runner.orphans(1) for pid in pids)


@pytest.mark.parametrize("how", WAYS)
async def test_nothing_of_a_call_outlives_its_tool_runner(runner: ToolRunner, how: str) -> None:
    staying = runner.events("keep", how=how)
    told = ""
    while not told:
        told = (await anext(staying)).progress.message
    os.kill(runner.service.life.process.pid, signal.SIGKILL)
    await gone(pids_of(told))
    with suppress(grpc.aio.AioRpcError):
        await anext(staying)


async def test_a_drain_waits_for_no_orphan(runner: ToolRunner) -> None:
    await runner.cut("swallow")
    (orphan,) = await runner.orphans(1)
    assert "tool swallow" in orphan.task
    began = time.monotonic()
    assert await runner.service.end() == 0
    assert time.monotonic() - began < 5.0
    assert "has drained" in runner.service.log
