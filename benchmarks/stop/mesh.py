"""The mesh's side of the stop benchmark: the three services as processes of their own, traced."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import grpc

from benchmarks.process import started
from benchmarks.stop.client import KEEPALIVE, HeldCalls, Scenarios, events_of
from deadlinemesh.identity.keys import hash_key, new_key
from deadlinemesh.v1 import common_pb2, orchestrator_pb2, orchestrator_pb2_grpc

__all__ = ["MeshUnderTest"]

HOPS = ("orchestrator", "llm-proxy", "tool-runner")
WORK = {
    "/deadlinemesh.v1.OrchestratorService/Run",
    "/deadlinemesh.v1.LlmProxyService/Generate",
    "/deadlinemesh.v1.ToolRunnerService/CallTool",
}
TOOL = orchestrator_pb2.RunRequest(prompt="Run the long task for 60 seconds", model="quick", tools=["long_task"])
STREAM = orchestrator_pb2.RunRequest(prompt="Tell me a long story about deadlines", model="slow")


def _policy(key: str) -> str:
    policy = {
        "tiers": {"enterprise": {"run_budget": "300s", "iterations": 10}},
        "tenants": {"bench": {"tier": "enterprise", "api_keys": [hash_key(key)]}},
        "models": {
            "quick": {"provider": "scripted", "slots": 1000, "first_token": 0, "per_token": 0},
            # Its first token takes longer than any run of the benchmark has.
            "slow": {"provider": "scripted", "slots": 1000, "first_token": "60s", "jitter": 0},
        },
    }
    return json.dumps(policy)  # JSON is YAML


class MeshUnderTest(Scenarios):
    """A fresh mesh for one scenario."""

    def __init__(self, runs: int) -> None:
        super().__init__(runs)
        self._key = new_key("bench")

    async def __aenter__(self) -> Self:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        policy = self._folder / "policy.yaml"
        policy.write_text(_policy(self._key))
        common = {
            "DMESH_LISTEN": "127.0.0.1:0",
            "DMESH_POLICY_FILE": str(policy),
            "DMESH_MESH_TOKEN": "benchmark",
            "DMESH_KEEPALIVE_SECONDS": str(KEEPALIVE),
            "DMESH_DRAIN_SECONDS": "0",
            "DMESH_LOG_LEVEL": "ERROR",
        }
        ports: dict[str, int] = {}
        for hop in reversed(HOPS):
            own = {
                "DMESH_TRACES": f"file:{self._folder / hop}.spans",
                "DMESH_EVENTS_FILE": f"{self._folder / hop}.events",
            }
            if hop == "orchestrator":
                own |= {f"DMESH_{name.upper().replace('-', '_')}": f"127.0.0.1:{port}" for name, port in ports.items()}
            ready = started("deadlinemesh.cli", "serve", hop, "--announce", environment=common | own)
            ports[hop] = (await self._stack.enter_async_context(ready))["port"]
        self._port = ports["orchestrator"]
        return self

    async def lateness(self) -> tuple[dict[str, list[float]], int]:
        """Seconds from when each handler, and each run, should have ended to when it did, by hop; and how many never did."""
        await self._all_ended(within=time.monotonic() + 10)
        stopped = {self._names[number]: instant for number, instant in self._stopped.items()}
        late: dict[str, list[float]] = {}
        unfinished = 0
        for hop in HOPS:
            events = events_of(self._folder / f"{hop}.events")
            begun = [one for one in events if one["event"] == "CallStarted" and one["method"] in WORK]
            ended = [one for one in events if one["event"] == "CallEnded" and one["method"] in WORK]
            runs = {one["run_id"]: one for one in events if one["event"] == "RunEnded"}
            unfinished += len(begun) - len(ended)
            if hop == "orchestrator":
                unfinished += self._runs - len(runs)
                late["run"] = [one["ended_at"] - stopped.get(one["run_id"], one["due_at"]) for one in runs.values()]
            late[hop] = [
                one["ended_at"] - stopped.get(one["run_id"], one["deadline_at"])
                for one in ended
                if one["code"] != "OK" or hop == "orchestrator"
            ]
        return late, unfinished

    def _held(self, channels: Sequence[grpc.aio.Channel]) -> HeldCalls:
        stubs = [orchestrator_pb2_grpc.OrchestratorServiceStub(channel) for channel in channels]
        metadata = (("authorization", f"Bearer {self._key}"),)
        self._names: dict[int, str] = {}

        def call(number: int, timeout: float | None) -> Any:
            request = STREAM if _streams(number) else TOOL
            return stubs[number % len(stubs)].Run(request, timeout=timeout, metadata=metadata)

        def at_work(number: int, response: orchestrator_pb2.RunResponse) -> bool:
            if response.HasField("started"):
                self._names[number] = response.started.run_id
            return response.phase_changed.phase == (
                common_pb2.PHASE_LLM_FIRST_TOKEN if _streams(number) else common_pb2.PHASE_TOOL_CALL
            )

        return HeldCalls(self._runs, call, at_work)

    def _ended(self) -> bool:
        kinds = [event["event"] for hop in HOPS for event in events_of(self._folder / f"{hop}.events")]
        return kinds.count("CallStarted") == kinds.count("CallEnded") and kinds.count("RunEnded") == self._runs


def _streams(number: int) -> bool:
    """Whether the run waits for the slow model and not for the tool."""
    return number % 5 == 4
