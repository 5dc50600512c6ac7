"""Async tools that will not end, behind the real interceptor, in virtual time: reported on time, and in nobody's way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from tests.support.virtual import in_virtual_time, now, with_seconds

from deadlinemesh.deadline import entered
from deadlinemesh.deadline.scope import CANCEL_AGAIN_AFTER, REPORT_ORPHAN_AFTER
from deadlinemesh.telemetry import CallEnded, CountingSink, Event, OrphanReported, Telemetry
from deadlinemesh.testing import virtual_time
from deadlinemesh.testing.memory import MemoryChannel, MemoryServer
from deadlinemesh.tool_runner import tool
from deadlinemesh.tool_runner.kinds.python import PythonTool
from deadlinemesh.tool_runner.registry import Registry
from deadlinemesh.tool_runner.service import ToolService
from deadlinemesh.tool_runner.servicer import ToolRunnerServicer
from deadlinemesh.tool_runner.tool import definition_of
from deadlinemesh.transport import DeadlineInterceptor, MeshChannel, MeshGate
from deadlinemesh.v1 import tool_runner_pb2, tool_runner_pb2_grpc
from deadlinemesh.vocabulary.hops import TOOL_RUNNER


class Recorded(CountingSink):
    """What was recorded, and whether a call has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.call_ended = asyncio.Event()

    def record(self, event: Event) -> None:
        super().record(event)
        if isinstance(event, CallEnded):
            self.call_ended.set()


class ToolRunner:
    """A tool-runner in memory with these tools, and what was recorded of it."""

    def __init__(self, *functions: Callable[..., Any]) -> None:
        definitions = [definition_of(function) for function in functions]
        tools = {one.spec.name: PythonTool(one) for one in definitions if one is not None}
        clock = virtual_time.clock()
        self.sink = Recorded()
        self.interceptor = DeadlineInterceptor(
            TOOL_RUNNER, MeshGate(TOOL_RUNNER, "token", clock), clock=clock, telemetry=Telemetry([self.sink])
        )
        server: Any = MemoryServer(self.interceptor)
        servicer = ToolRunnerServicer(ToolService(Registry(tools, {"acme": ()}), 1_000_000, clock))
        tool_runner_pb2_grpc.add_ToolRunnerServiceServicer_to_server(servicer, server)
        self._stub: Any = tool_runner_pb2_grpc.ToolRunnerServiceStub(MeshChannel(MemoryChannel(server), "token"))

    async def call(self, name: str, seconds: float = 10.0) -> str:
        """Call a tool; its result."""
        with entered(with_seconds(seconds)):
            responses = [one async for one in self._stub.CallTool(tool_runner_pb2.CallToolRequest(name=name))]
        content: str = responses[-1].result.content
        return content

    async def cut(self, name: str, seconds: float) -> None:
        """Call a tool that does not end in time."""
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await self.call(name, seconds)
        assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED

    async def ended(self) -> tuple[str, float]:
        """The cause with which the first call has ended, and when."""
        await self.sink.call_ended.wait()
        ended = next(event for event in self.sink.events if isinstance(event, CallEnded))
        return ended.cause, ended.ended_at

    @property
    def orphans(self) -> list[OrphanReported]:
        """What was reported to live on."""
        return [event for event in self.sink.events if isinstance(event, OrphanReported)]


class Swallower:
    """Swallows every cancellation until it is let go."""

    def __init__(self) -> None:
        self.let_go = False
        self.cancels: list[float] = []

    async def __call__(self) -> None:
        while not self.let_go:
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                self.cancels.append(now())


REPORTED_AFTER = pytest.approx(REPORT_ORPHAN_AFTER, abs=CANCEL_AGAIN_AFTER)


@in_virtual_time
async def test_a_tool_that_swallows_cancellation_is_reported_and_its_call_has_its_status_all_the_same() -> None:
    swallow = Swallower()

    @tool
    async def stubborn() -> None:
        """Stay."""
        await swallow()

    @tool
    async def quick() -> str:
        """Go."""
        return "gone"

    runner = ToolRunner(stubborn, quick)
    deadline = now() + 1.0
    await runner.cut("stubborn", 1.0)
    assert now() == pytest.approx(deadline)
    cause, ended_at = await runner.ended()
    assert cause == "DEADLINE_SPENT"
    assert ended_at - deadline == REPORTED_AFTER
    (orphan,) = runner.orphans
    assert (orphan.hop, orphan.tenant_id, orphan.run_id) == (TOOL_RUNNER, "acme", "run-1")
    assert orphan.age == REPORTED_AFTER
    assert orphan.task.startswith("tool stubborn ")
    assert "Swallower.__call__" in orphan.task
    assert await runner.call("quick") == "gone"
    swallow.let_go = True  # its next cancellation is its last: it is cancelled on as long as it lives
    await runner.interceptor.scopes.emptied()
    assert len(swallow.cancels) > 5


@in_virtual_time
async def test_tasks_that_a_tool_detaches_end_with_its_call() -> None:
    ended: list[float] = []
    tasks = []

    async def forever() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append(now())

    @tool
    async def detach() -> str:
        """Leave a task, which leaves another."""

        async def nested() -> None:
            tasks.append(asyncio.create_task(forever()))
            await forever()

        tasks.append(asyncio.create_task(nested()))
        await asyncio.sleep(0.5)
        return "detached"

    runner = ToolRunner(detach)
    began = now()
    assert await runner.call("detach") == "detached"
    assert ended == [pytest.approx(began + 0.5)] * 2
    assert all(task.cancelled() for task in tasks)
    assert runner.orphans == []


@in_virtual_time
async def test_a_detached_task_that_swallows_cancellation_is_reported_and_holds_up_no_other_call() -> None:
    swallow = Swallower()

    @tool
    async def detach() -> str:
        """Leave a task that will not end."""
        asyncio.create_task(swallow(), name="left behind")  # noqa: RUF006  # that is what it is to do
        await asyncio.sleep(0)
        return "detached"

    runner = ToolRunner(detach)
    began = now()
    assert await runner.call("detach") == "detached"
    cause, ended_at = await runner.ended()
    assert (cause, ended_at - began) == ("", REPORTED_AFTER)
    (orphan,) = runner.orphans
    assert orphan.task.startswith("left behind at Swallower.__call__")
    swallow.let_go = True
    await runner.interceptor.scopes.emptied()
