"""A reload in the middle of runs: each keeps to its end what it was begun with, and nothing new begins with it."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from deadlinemesh.policy import Policy, default_policy
from deadlinemesh.testing import virtual_time
from deadlinemesh.testing.mesh import MemoryMesh
from deadlinemesh.v1 import orchestrator_pb2, orchestrator_pb2_grpc

LONG_TASK = "Run the long task for 20 seconds"
BOLT = "bolt"  # professional: a minute's run has several turns


def without_bolt(policy: Policy) -> Policy:
    return policy.model_copy(update={"tenants": {name: one for name, one in policy.tenants.items() if name != BOLT}})


def without_its_model(policy: Policy) -> Policy:
    model = policy.models_of(BOLT)[0]
    models = {name: one for name, one in policy.models.items() if name != model}
    return policy.model_copy(update={"models": models})


def with_other_models(policy: Policy) -> Policy:
    return with_bolt(policy, models=policy.models_of(BOLT)[1:])


def without_its_tools(policy: Policy) -> Policy:
    return with_bolt(policy, tools=("calculate",))


def without_any_of_its_tools(policy: Policy) -> Policy:
    tools = policy.tools.model_copy(update={"modules": ("tests.support.kept_tools",)})
    return policy.model_copy(update={"tools": tools})


def with_its_tier_gone(policy: Policy) -> Policy:
    tiers = {name: one for name, one in policy.tiers.items() if name != policy.tenants[BOLT].tier}
    return with_bolt(policy, tier=next(iter(tiers))).model_copy(update={"tiers": tiers})


def with_another_key(policy: Policy) -> Policy:
    return with_bolt(policy, api_keys=("sha256:" + "f" * 64,))


def with_bolt(policy: Policy, **changes: Any) -> Policy:
    bolt = policy.tenants[BOLT].model_copy(update=changes)
    return policy.model_copy(update={"tenants": policy.tenants | {BOLT: bolt}})


CHANGES = [
    without_bolt,
    without_its_model,
    with_other_models,
    without_its_tools,
    without_any_of_its_tools,
    with_its_tier_gone,
    with_another_key,
]


class Runs:
    """A mesh with its own processes for acme or for nobody, and the runs of bolt there."""

    def __init__(self, *, dedicated: bool) -> None:
        policy = default_policy()
        if dedicated:
            acme = policy.tenants["acme"].model_copy(update={"dedicated": True})
            policy = policy.model_copy(update={"tenants": policy.tenants | {"acme": acme}})
        self.mesh = MemoryMesh(policy, virtual_time.clock(), transit=0.0005)
        self.stub: Any = orchestrator_pb2_grpc.OrchestratorServiceStub(self.mesh.channel)
        self.credentials = self.mesh.credentials(BOLT)

    async def finished(self, prompt: str = LONG_TASK, **request: Any) -> orchestrator_pb2.RunFinished:
        message = orchestrator_pb2.RunRequest(prompt=prompt, **request)
        call = self.stub.Run(message, timeout=60.0, metadata=self.credentials)
        events = [event async for event in call]
        finished: orchestrator_pb2.RunFinished = events[-1].finished
        return finished


@pytest.mark.parametrize("dedicated", [False, True])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("at", [0.001, 0.05, 10.0])
def test_a_run_keeps_what_it_was_begun_with(change: Any, at: float, dedicated: bool) -> None:
    async def main() -> None:
        runs = Runs(dedicated=dedicated)
        run = asyncio.ensure_future(runs.finished())
        await asyncio.sleep(at)
        runs.mesh.reconfigure(change(runs.mesh.policy))
        finished = await run
        assert finished.outcome == orchestrator_pb2.OUTCOME_COMPLETED, finished.detail
        assert not finished.partial
        await runs.mesh.idle()

    virtual_time.run(main())


def test_nothing_begins_with_what_was_taken_away() -> None:
    async def main() -> None:
        runs = Runs(dedicated=False)
        model = runs.mesh.policy.models_of(BOLT)[0]
        runs.mesh.reconfigure(with_other_models(runs.mesh.policy))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await runs.finished(model=model)
        assert refused.value.code() == grpc.StatusCode.NOT_FOUND
        runs.mesh.reconfigure(without_its_tools(runs.mesh.policy))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await runs.finished(tools=["long_task"])
        assert refused.value.code() == grpc.StatusCode.NOT_FOUND
        runs.mesh.reconfigure(without_bolt(runs.mesh.policy))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await runs.finished()
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
        for name in runs.mesh.policy.tenants:
            assert name not in str(refused.value.details())

    virtual_time.run(main())
