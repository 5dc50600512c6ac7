"""Runs whose answers and histories are larger than a message may be."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import grpc
import pytest

from deadlinemesh.errors import TooLarge
from deadlinemesh.policy import default_policy
from deadlinemesh.testing import virtual_time
from deadlinemesh.testing.mesh import MemoryMesh
from deadlinemesh.transport import error_from
from deadlinemesh.v1 import orchestrator_pb2, orchestrator_pb2_grpc

TENANT = "bolt"
MOST = 4096


def in_memory(
    test: Callable[[MemoryMesh, orchestrator_pb2_grpc.OrchestratorServiceAsyncStub], Awaitable[None]],
) -> None:
    """Run `test` on a mesh whose messages are small."""
    policy = default_policy()
    limits = policy.limits.model_copy(update={"message_bytes": MOST})

    async def main() -> None:
        mesh = MemoryMesh(policy.model_copy(update={"limits": limits}), virtual_time.clock())
        await test(mesh, orchestrator_pb2_grpc.OrchestratorServiceStub(mesh.channel))

    virtual_time.run(main())


def test_a_run_whose_history_fits_into_no_message_is_told_so_and_listed_all_the_same() -> None:
    async def test(mesh: MemoryMesh, stub: orchestrator_pb2_grpc.OrchestratorServiceAsyncStub) -> None:
        credentials = mesh.credentials(TENANT)
        request = orchestrator_pb2.RunRequest(prompt="x" * (MOST - 200), request_id="large")
        async for _ in stub.Run(request, metadata=credentials):
            pass
        (listed,) = (await stub.ListRuns(orchestrator_pb2.ListRunsRequest(), metadata=credentials)).runs
        assert listed.request_id == "large"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.GetRun(orchestrator_pb2.GetRunRequest(run_id=listed.run_id), metadata=credentials)
        error = error_from(refused.value, "orchestrator")
        assert isinstance(error, TooLarge)
        assert f"a message {MOST}" in str(error)

    in_memory(test)


def test_a_page_of_runs_has_as_many_as_fit_and_none_is_left_out() -> None:
    async def test(mesh: MemoryMesh, stub: orchestrator_pb2_grpc.OrchestratorServiceAsyncStub) -> None:
        credentials = mesh.credentials(TENANT)
        for number in range(15):
            request = orchestrator_pb2.RunRequest(prompt="Calculate 2 * 21", request_id=f"run-{number:0100}")
            async for _ in stub.Run(request, metadata=credentials):
                pass
        found: list[str] = []
        sizes: list[int] = []
        token = ""
        while True:
            asked = orchestrator_pb2.ListRunsRequest(page_size=100, page_token=token)
            page = await stub.ListRuns(asked, metadata=credentials)
            sizes.append(page.ByteSize())
            found += [one.request_id for one in page.runs]
            token = page.next_page_token
            if not token:
                break
        assert found == [f"run-{number:0100}" for number in reversed(range(15))]
        assert len(sizes) > 1
        assert max(sizes) <= MOST

    in_memory(test)
