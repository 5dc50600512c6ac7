"""The article's incident, in the whole mesh: one tenant's slow cache write while another tenant's run is on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from deadlinemesh.deadline import current
from deadlinemesh.policy import ToolsPolicy, default_policy
from deadlinemesh.telemetry import CacheUsed, CacheWritten
from deadlinemesh.testing import virtual_time
from deadlinemesh.testing.mesh import MemoryMesh
from deadlinemesh.tool_runner.cache import CacheKey, MemoryCache
from deadlinemesh.v1 import common_pb2, orchestrator_pb2, orchestrator_pb2_grpc
from deadlinemesh.vocabulary import FinishReason, ModelEvent, Role, TextDelta, ToolCall, TurnFinished, TurnRequest

WRITING = 4.0


class Asker:
    """A model that asks for `who_asks`, then repeats what it said."""

    async def stream(self, turn: TurnRequest) -> AsyncGenerator[ModelEvent, None]:
        await asyncio.sleep(0.1)
        results = [message.content for message in turn.messages if message.role is Role.TOOL]
        if results:
            yield TextDelta(results[-1])
            yield TurnFinished(FinishReason.STOP, 1, 1)
        else:
            yield ToolCall("call-1", "who_asks", "{}")
            yield TurnFinished(FinishReason.TOOL_CALLS, 1, 1)

    async def aclose(self) -> None:
        pass


class SlowStore(MemoryCache):
    """Takes seconds to write, and notes for whom, from the first moment to the last."""

    def __init__(self) -> None:
        super().__init__(1_000_000, virtual_time.clock())
        self.writes: list[tuple[str, float, str, float]] = []

    async def put(self, key: CacheKey, content: str, seconds: float) -> None:
        before, began_at = current(), virtual_time.clock().monotonic()
        await asyncio.sleep(WRITING)
        after = current()
        assert (before.tenant_id, before.run_id, before.absolute_deadline) == (
            after.tenant_id,
            after.run_id,
            after.absolute_deadline,
        )
        self.writes.append((before.tenant_id, began_at, after.tenant_id, virtual_time.clock().monotonic()))
        await super().put(key, content, seconds)


def test_a_slow_write_is_its_owners_alone_though_its_run_is_over_and_another_is_on() -> None:
    async def main() -> None:
        policy = default_policy().model_copy(update={"tools": ToolsPolicy(modules=("tests.support.kept_tools",))})
        store = SlowStore()
        mesh = MemoryMesh(
            policy, virtual_time.clock(), providers={name: Asker() for name in policy.models}, cache=store
        )
        stub = orchestrator_pb2_grpc.OrchestratorServiceStub(mesh.channel)

        async def run(tenant_id: str) -> orchestrator_pb2.RunFinished:
            call = stub.Run(
                orchestrator_pb2.RunRequest(prompt="Who asks?"), timeout=2.0, metadata=mesh.credentials(tenant_id)
            )
            return [event async for event in call][-1].finished

        def now() -> float:
            return virtual_time.clock().monotonic()

        first = await run("acme")
        assert first.answer == "acme asks"
        assert now() == pytest.approx(0.7), "the run did not wait for the write"
        second = await run("bolt")
        assert second.answer == "bolt asks"
        assert now() == pytest.approx(1.4)
        spent = {phase.phase: phase.spent_us for phase in second.ledger.phases}
        assert spent[common_pb2.PHASE_TOOL_CALL] == pytest.approx(500_000, abs=10)
        assert second.ledger.elapsed_us == pytest.approx(700_000, abs=10)
        assert second.ledger.unattributed_us < 0.02 * second.ledger.elapsed_us

        await mesh.idle()
        assert [(before, after) for before, _, after, _ in store.writes] == [("acme", "acme"), ("bolt", "bolt")]
        assert store.writes[0][1] < 0.7 < 1.4 < store.writes[0][3], "it was at work during all of the other's run"
        written = [event for event in mesh.events.events if isinstance(event, CacheWritten)]
        assert [(event.tenant_id, event.problem) for event in written] == [("acme", ""), ("bolt", "")]

        third = await run("acme")
        assert third.answer == "acme asks"
        used = [event for event in mesh.events.events if isinstance(event, CacheUsed)]
        assert [(event.tenant_id, event.hit) for event in used] == [("acme", False), ("bolt", False), ("acme", True)]
        assert mesh.events.counts["OrphanReported"] == 0

    virtual_time.run(main())
