"""The mesh's side of the stop benchmark: the three services as processes of their own, traced."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

import grpc

from benchmarks.process import started
from benchmarks.stop_client import RAMP, HeldCalls, SilentRelay, events_of
from deadlinemesh.policy import hash_key, new_key
from deadlinemesh.v1 import common_pb2, orchestrator_pb2, orchestrator_pb2_grpc

__all__ = ["KEEPALIVE", "MeshUnderTest"]

KEEPALIVE = 1.0
"""Seconds of silence before a service asks for a sign of life, and as many until it gives its peer up."""
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


class MeshUnderTest:
    """A fresh mesh for one scenario."""

    def __init__(self, runs: int) -> None:
        self._runs = runs
        self._key = new_key("bench")
        self._stack = AsyncExitStack()
        self._due: dict[str, float] = {}
        self._port = 0

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

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def deadlines_spread(self) -> None:
        """Deadlines evenly over one second."""
        first = time.monotonic() + 3 + self._runs * RAMP
        await self._run_to_deadline([first + number / self._runs for number in range(self._runs)])

    async def deadlines_at_once(self) -> None:
        """One deadline for all."""
        await self._run_to_deadline([time.monotonic() + 3 + self._runs * RAMP] * self._runs)

    async def cancelled(self) -> None:
        """Every client cancels at once."""
        async with self._channel(self._port) as channel:
            held = self._held([channel])
            await held.begin(None)
            instants = held.cancel()
            self._due = {self._names[number]: instant for number, instant in instants.items()}
            await held.end()

    async def broken(self) -> None:
        """Every client has a connection of its own, and the network goes silent under all of them."""
        relay = SilentRelay(self._port)
        port = await relay.listen()
        channels = [self._channel(port) for _ in range(self._runs)]
        held = self._held(channels)
        await held.begin(None)
        due = relay.fall_silent() + 2 * KEEPALIVE
        self._due = dict.fromkeys(self._names.values(), due)
        await self._all_ended(within=due + 10)
        held.cancel()
        await held.end()
        for channel in channels:
            await channel.close()
        await relay.close()

    async def lateness(self) -> tuple[dict[str, list[float]], int]:
        """Seconds from when each handler, and each run, should have ended to when it did, by hop; and how many never did."""
        await self._all_ended(within=time.monotonic() + 10)
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
                late["run"] = [one["ended_at"] - self._due.get(one["run_id"], one["due_at"]) for one in runs.values()]
            late[hop] = [
                one["ended_at"] - self._due.get(one["run_id"], one["deadline_at"])
                for one in ended
                if one["code"] != "OK" or hop == "orchestrator"
            ]
        return late, unfinished

    async def _run_to_deadline(self, deadlines: list[float]) -> None:
        async with self._channel(self._port) as channel:
            held = self._held([channel])
            await held.begin(deadlines)
            await held.end()

    def _channel(self, port: int) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)])

    def _held(self, channels: list[grpc.aio.Channel]) -> HeldCalls:
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

    async def _all_ended(self, within: float) -> None:
        """Return when every service has written an end for each beginning, or at the instant `within`."""
        while time.monotonic() < within:
            events = [event for hop in HOPS for event in events_of(self._folder / f"{hop}.events")]
            kinds = [event["event"] for event in events]
            if kinds.count("CallStarted") == kinds.count("CallEnded") and kinds.count("RunEnded") == self._runs:
                return
            await asyncio.sleep(0.2)


def _streams(number: int) -> bool:
    """Whether the run waits for the slow model and not for the tool."""
    return number % 5 == 4
