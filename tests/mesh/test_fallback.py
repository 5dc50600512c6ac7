"""A provider that accepts and never answers, in the whole mesh: with a fallback, the run is answered in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from deadlinemesh.errors import UpstreamFailed
from deadlinemesh.llm_proxy.providers import provider_of
from deadlinemesh.policy import OpenAIModel, Policy, default_policy
from deadlinemesh.telemetry import FellBack, Retried
from deadlinemesh.testing import virtual_time
from deadlinemesh.testing.mesh import MemoryMesh
from deadlinemesh.transport.codec import message_from_wire
from deadlinemesh.v1 import orchestrator_pb2, orchestrator_pb2_grpc
from deadlinemesh.vocabulary import ModelEvent, TurnRequest, history_violations


class BlackHole:
    """Accepts, and never answers."""

    def __init__(self) -> None:
        self.asked = self.left = 0

    async def stream(self, turn: TurnRequest) -> AsyncGenerator[ModelEvent, None]:
        self.asked += 1
        try:
            await asyncio.get_running_loop().create_future()
            yield  # type: ignore[misc]  # unreachable: it makes this a generator
        finally:
            self.left += 1

    async def aclose(self) -> None:
        pass


class Down(BlackHole):
    """Fails `times`, then answers as the scripted model does."""

    def __init__(self, policy: Policy, times: int) -> None:
        super().__init__()
        self.times = times
        self.scripted = provider_of(policy.models["demo"])

    async def stream(self, turn: TurnRequest) -> AsyncGenerator[ModelEvent, None]:
        self.asked += 1
        if self.asked <= self.times:
            raise UpstreamFailed("down")
        async for event in self.scripted.stream(turn):
            yield event


def falling_back() -> Policy:
    policy = default_policy()
    demo = policy.models["demo"].model_copy(update={"fallback": "fast"})
    return policy.model_copy(update={"models": {**policy.models, "demo": demo}})


async def run(mesh: MemoryMesh, tenant: str, timeout: float) -> list[orchestrator_pb2.RunResponse]:
    stub = orchestrator_pb2_grpc.OrchestratorServiceStub(mesh.channel)
    request = orchestrator_pb2.RunRequest(prompt="What is (17+25)*3?")
    call = stub.Run(request, timeout=timeout, metadata=mesh.credentials(tenant))
    events = [event async for event in call]
    asked = orchestrator_pb2.GetRunRequest(run_id=events[0].started.run_id)
    known = await stub.GetRun(asked, timeout=1.0, metadata=mesh.credentials(tenant))
    assert history_violations([message_from_wire(one) for one in known.messages], "messages") == []
    return events


def test_a_run_whose_provider_never_answers_is_answered_by_the_fallback_in_time_also_in_the_free_tier() -> None:
    async def main() -> None:
        policy, clock, hole = falling_back(), virtual_time.clock(), BlackHole()
        providers = {"demo": hole, "fast": provider_of(policy.models["fast"])}
        mesh = MemoryMesh(policy, clock, transit=0.0005, rounding=1.03, providers=providers)
        for tenant in ("acme", "cora"):
            began_at = clock.monotonic()
            events = await run(mesh, tenant, 10.0)
            finished = events[-1].finished
            assert finished.outcome == orchestrator_pb2.OUTCOME_COMPLETED
            assert "126" in finished.answer
            assert clock.monotonic() - began_at < 10.0
            assert finished.usage.model_calls == 3, "the hole once, then the fallback for each of the two turns"
            told = "".join(event.text.text for event in events)
            assert told.endswith(finished.answer)
        await mesh.idle()
        assert (hole.asked, hole.left) == (2, 2), "the connection was closed"
        assert mesh.events.counts["OrphanReported"] == 0
        fell_back = [event for event in mesh.events.events if isinstance(event, FellBack)]
        assert [(event.tenant_id, event.fallback, event.why) for event in fell_back] == [
            ("acme", "fast", "HUNG"),
            ("cora", "fast", "HUNG"),
        ]

    virtual_time.run(main())


def test_a_run_whose_provider_never_answers_and_has_no_fallback_ends_at_its_internal_deadline() -> None:
    async def main() -> None:
        hole = BlackHole()
        mesh = MemoryMesh(default_policy(), virtual_time.clock(), providers={"demo": hole, "fast": hole})
        finished = (await run(mesh, "acme", 20.0))[-1].finished
        assert finished.outcome == orchestrator_pb2.OUTCOME_DEADLINE_SPENT
        await mesh.idle()
        assert hole.asked == hole.left == 3, "enterprise has two retries, which hung as well"

    virtual_time.run(main())


def test_a_provider_that_fails_once_costs_a_retry_and_not_the_run() -> None:
    async def main() -> None:
        policy = default_policy()
        mesh = MemoryMesh(policy, virtual_time.clock(), providers=dict.fromkeys(policy.models, Down(policy, 1)))
        finished = (await run(mesh, "acme", 10.0))[-1].finished
        assert finished.outcome == orchestrator_pb2.OUTCOME_COMPLETED
        assert "126" in finished.answer
        assert [event.upstream for event in mesh.events.events if isinstance(event, Retried)] == ["model demo"]

    virtual_time.run(main())


def test_a_model_whose_key_is_missing_is_replaced_by_its_fallback_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPT_KEY", raising=False)

    async def main() -> None:
        policy, clock = default_policy(), virtual_time.clock()
        gpt = OpenAIModel(provider="openai", model="gpt-x", api_key_env="GPT_KEY", fallback="fast")
        policy = policy.model_copy(update={"models": {"gpt": gpt, **policy.models}})
        mesh = MemoryMesh(policy, clock)
        finished = (await run(mesh, "acme", 10.0))[-1].finished
        assert finished.outcome == orchestrator_pb2.OUTCOME_COMPLETED
        assert "126" in finished.answer
        fell_back = [event for event in mesh.events.events if isinstance(event, FellBack)]
        assert [(event.fallback, event.why) for event in fell_back] == [("fast", "UPSTREAM_FAILED")]
        assert not any(isinstance(event, Retried) for event in mesh.events.events)

    virtual_time.run(main())
