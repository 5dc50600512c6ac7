"""Runs that are over are forgotten: also those of tenants that never ask for one, and without the cycle collector's help."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable

import grpc
import pytest

from deadlinemesh.orchestrator.run import RECORD_BYTES, AgentRun
from deadlinemesh.policy import default_policy
from deadlinemesh.testing import virtual_time
from deadlinemesh.testing.mesh import MemoryMesh
from deadlinemesh.v1 import orchestrator_pb2, orchestrator_pb2_grpc
from deadlinemesh.vocabulary import TextDelta

KEPT = 3
KEPT_FOR = 60.0
EXPIRES = 2.0
"""A deadline that ends a run in the midst of its tool: the errors that end it hold every frame on their way."""


async def run(mesh: MemoryMesh, tenant: str, timeout: float | None = None) -> str:
    """A run without a request id, as most are; its id."""
    stub = orchestrator_pb2_grpc.OrchestratorServiceStub(mesh.channel)
    request = orchestrator_pb2.RunRequest(prompt="Run the long task for 5 seconds")
    events = [event async for event in stub.Run(request, timeout=timeout, metadata=mesh.credentials(tenant))]
    await mesh.idle()
    return events[0].started.run_id


def in_memory(test: Callable[[MemoryMesh], Awaitable[None]], **limits: float) -> None:
    policy = default_policy()
    kept = {"keep_runs_per_tenant": KEPT, "keep_finished_runs": KEPT_FOR, **limits}

    async def main() -> None:
        await test(
            MemoryMesh(
                policy.model_copy(update={"limits": policy.limits.model_copy(update=kept)}), virtual_time.clock()
            )
        )

    virtual_time.run(main())


def remembered(run_ids: list[str]) -> list[str]:
    """Those of the runs that there still is anything of."""
    there = {one.run_id for one in gc.get_objects() if isinstance(one, AgentRun)}
    return [run_id for run_id in run_ids if run_id in there]


def test_no_more_are_kept_for_a_tenant_than_policy_says_though_it_never_asks_for_one() -> None:
    async def test(mesh: MemoryMesh) -> None:
        run_ids = [await run(mesh, "bolt", EXPIRES if number % 2 else None) for number in range(8)]
        gc.collect()
        assert remembered(run_ids) == run_ids[-KEPT:]

    in_memory(test)


def test_what_is_kept_of_a_tenants_runs_has_a_bound_however_few_they_are() -> None:
    async def test(mesh: MemoryMesh) -> None:
        stub = orchestrator_pb2_grpc.OrchestratorServiceStub(mesh.channel)
        large = int(mesh.policy.limits.keep_bytes * mesh.policy.limits.keep_part * 2 / 5)
        for number in range(3):
            request = orchestrator_pb2.RunRequest(prompt="x" * large, request_id=str(number))
            async for _ in stub.Run(request, metadata=mesh.credentials("bolt")):
                pass
            await mesh.idle()
            await asyncio.sleep(1.0)
        listed = await stub.ListRuns(orchestrator_pb2.ListRunsRequest(), metadata=mesh.credentials("bolt"))
        assert [one.request_id for one in listed.runs] == ["2", "1"]

    in_memory(test, keep_bytes=3_000_000)  # of which each run has more than is packed


def test_wide_letters_count_with_the_memory_that_they_take() -> None:
    async def test(mesh: MemoryMesh) -> None:
        await run_of(mesh, "bolt", "latin", "x" * 150_000)
        await run_of(mesh, "bolt", "wide", "\N{SNOWMAN}" * 150_000)
        await run_of(mesh, "bolt", "last", "x")
        assert await listed(mesh, "bolt") == ["last", "wide"]

    in_memory(test, keep_bytes=1_800_000, keep_part=0.5)


def test_the_runs_of_whoever_keeps_most_make_room_for_others() -> None:
    async def test(mesh: MemoryMesh) -> None:
        await run_of(mesh, "bolt", "small", "x" * 100_000)
        for number in range(3):
            await run_of(mesh, "cora", str(number), "x" * 240_000)
        assert await listed(mesh, "bolt") == ["small"]
        assert await listed(mesh, "cora") == ["2", "1"]
        await run_of(mesh, "acme", "new", "x" * 450_000)
        assert await listed(mesh, "cora") == ["2"]
        assert await listed(mesh, "bolt") == ["small"]
        assert await listed(mesh, "acme") == ["new"]

    in_memory(test, keep_bytes=1_000_000, keep_part=0.5)


async def run_of(mesh: MemoryMesh, tenant: str, request_id: str, prompt: str) -> None:
    stub = orchestrator_pb2_grpc.OrchestratorServiceStub(mesh.channel)
    request = orchestrator_pb2.RunRequest(prompt=prompt, request_id=request_id)
    async for _ in stub.Run(request, metadata=mesh.credentials(tenant)):
        pass
    await mesh.idle()
    await asyncio.sleep(1.0)


async def listed(mesh: MemoryMesh, tenant: str) -> list[str]:
    stub = orchestrator_pb2_grpc.OrchestratorServiceStub(mesh.channel)
    page = await stub.ListRuns(orchestrator_pb2.ListRunsRequest(), metadata=mesh.credentials(tenant))
    return [one.request_id for one in page.runs]


def test_of_a_run_that_its_client_left_no_piece_of_text_is_kept_by_itself() -> None:
    async def test(mesh: MemoryMesh) -> None:
        stub = orchestrator_pb2_grpc.OrchestratorServiceStub(mesh.channel)
        request = orchestrator_pb2.RunRequest(prompt="Tell me a long story about deadlines")
        pieces = 0
        call = stub.Run(request, metadata=mesh.credentials("acme"))
        async for event in call:
            pieces += event.HasField("text")
            if pieces == 20:
                call.cancel()
                break
        await mesh.idle()
        (left,) = (one for one in gc.get_objects() if isinstance(one, AgentRun))
        texts = [timed.event.text for timed in left.events if isinstance(timed.event, TextDelta)]
        assert (pieces, len(texts)) == (20, 1)
        assert left.size > RECORD_BYTES

    gc.collect()
    in_memory(test)


def test_the_runs_of_a_tenant_that_does_not_come_back_are_forgotten_in_their_time() -> None:
    async def test(mesh: MemoryMesh) -> None:
        old = await run(mesh, "acme")
        await asyncio.sleep(KEPT_FOR)
        new = await run(mesh, "bolt")
        gc.collect()
        assert remembered([old, new]) == [new]

    in_memory(test)


def test_a_run_that_is_forgotten_is_freed_at_once() -> None:
    async def test(mesh: MemoryMesh) -> None:
        run_ids = [await run(mesh, "bolt", timeout) for timeout in (None, EXPIRES, None)]
        gc.collect()  # what is kept is old by the time it is forgotten, and the old are rarely collected
        gc.disable()
        try:
            run_ids += [await run(mesh, "bolt") for _ in range(KEPT)]
            assert remembered(run_ids) == run_ids[-KEPT:]
        finally:
            gc.enable()

    in_memory(test)


def test_a_run_that_is_refused_is_freed_at_once() -> None:
    async def test(mesh: MemoryMesh) -> None:
        gc.collect()
        gc.disable()
        try:
            stub = orchestrator_pb2_grpc.OrchestratorServiceStub(mesh.channel)
            request = orchestrator_pb2.RunRequest(prompt="What is 2+2?", model="nobody's", request_id="once")
            calls = [stub.Run(request, metadata=mesh.credentials("bolt")) for _ in range(2)]
            for call in calls:
                with pytest.raises(grpc.aio.AioRpcError, match="unknown or not yours"):
                    await call.read()
            del call, calls
            await mesh.idle()
            await asyncio.sleep(1.0)  # the end of a run is seen to when nothing is more urgent
            assert [one for one in gc.get_objects() if isinstance(one, AgentRun)] == []
        finally:
            gc.enable()

    in_memory(test)


def test_whoever_lists_its_runs_does_not_have_all_the_others_looked_at() -> None:
    async def test(mesh: MemoryMesh) -> None:
        run_ids = [await run(mesh, "bolt") for _ in range(2)]
        await run(mesh, "acme")
        for one in gc.get_objects():
            if isinstance(one, AgentRun) and one.context.tenant_id == "acme":
                del one.context
        stub = orchestrator_pb2_grpc.OrchestratorServiceStub(mesh.channel)
        listed = await stub.ListRuns(orchestrator_pb2.ListRunsRequest(), metadata=mesh.credentials("bolt"))
        assert [one.run_id for one in listed.runs] == run_ids[::-1]

    in_memory(test)


def test_what_was_said_in_a_run_that_is_over_can_still_be_asked_for() -> None:
    async def test(mesh: MemoryMesh) -> None:
        stub = orchestrator_pb2_grpc.OrchestratorServiceStub(mesh.channel)
        request = orchestrator_pb2.GetRunRequest(run_id=await run(mesh, "bolt"))
        got = await stub.GetRun(request, timeout=1.0, metadata=mesh.credentials("bolt"))
        assert [message.content for message in got.messages][1] == "Run the long task for 5 seconds"
        assert got.messages[-1].content == got.run.finished.answer

    in_memory(test)
