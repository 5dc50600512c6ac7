"""A client whose deadline is far shorter than its run is answered, always: OK, a partial answer, a ledger."""

from __future__ import annotations

import asyncio

import grpc
from tests.support.up import Up

from deadlinemesh.v1 import orchestrator_pb2, orchestrator_pb2_grpc

CLIENTS = 200
AT_ONCE = 50
DEADLINE = 2.0


async def test_two_hundred_short_deadlines_on_long_runs_are_all_answered(mesh: Up) -> None:
    credentials = (("authorization", f"Bearer {mesh.api_key('enterprise')}"),)
    request = orchestrator_pb2.RunRequest(prompt="Run the long task for 20 seconds")
    turns = asyncio.Semaphore(AT_ONCE)

    async with grpc.aio.insecure_channel(mesh.address) as channel:
        stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)

        async def answered() -> orchestrator_pb2.RunFinished:
            async with turns:
                events = [event async for event in stub.Run(request, timeout=DEADLINE, metadata=credentials)]
            return events[-1].finished

        finished = await asyncio.gather(*(answered() for _ in range(CLIENTS)))

    # A run that comes late to its first turn, on a busy machine, wraps up without the tool: that is a partial answer as well.
    in_time = (orchestrator_pb2.OUTCOME_DEADLINE_SPENT, orchestrator_pb2.OUTCOME_COMPLETED)
    assert [one.detail for one in finished if one.outcome not in in_time] == []
    assert all(one.partial and one.answer and one.ledger.phases for one in finished)
    assert max(one.ledger.unattributed_us / one.ledger.elapsed_us for one in finished) < 0.02
