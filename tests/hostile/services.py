"""Each service, on a free port of this process, with somebody who may call it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from benchmarks.hostile.attacker import Call, Target
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deadlinemesh.hosting.assembly import assemble
from deadlinemesh.hosting.settings import CLIENT_STREAMS, MESH_STREAMS, HopSettings
from deadlinemesh.identity.keys import hash_key, new_key
from deadlinemesh.transport import MeshServer
from deadlinemesh.v1 import common_pb2, llm_proxy_pb2, orchestrator_pb2, tool_runner_pb2

__all__ = ["DRAIN_S", "SERVICES", "Served", "serving"]

SERVICES = ("orchestrator", "llm-proxy", "tool-runner", "edge")
DRAIN_S = 0.5
TOKEN = "mesh-secret"
KEY, NEIGHBOURS_KEY = new_key("acme"), new_key("cora")
_INNER = {
    "orchestrator": "orchestrator",
    "edge": "orchestrator",
    "llm-proxy": "llm_proxy",
    "tool-runner": "tool_runner",
}

_MODEL = {"provider": "scripted", "first_token": 0, "per_token": "10ms", "jitter": 0}
_TIER = {"run_budget": "30s", "iterations": 2}
POLICY = {
    "tiers": {"free": _TIER, "hasty": {**_TIER, "calls_per_second": 100_000, "burst": 100_000}},
    "tenants": {
        "acme": {"tier": "free", "api_keys": [hash_key(KEY)]},
        "cora": {"tier": "hasty", "api_keys": [hash_key(NEIGHBOURS_KEY)]},
    },
    "models": {"fast": _MODEL},
}
_AS_TENANT = (("authorization", f"Bearer {KEY}"),)
_AS_PEER = (
    ("mesh-identity", f"token={TOKEN};tenant=acme;tier=free;run=run-1;trace={1:032x}"),
    ("grpc-timeout", "20S"),
)
_NEIGHBOUR: dict[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]] = {
    _AS_TENANT: (("authorization", f"Bearer {NEIGHBOURS_KEY}"),)
}
_USER = common_pb2.Message(role=common_pb2.ROLE_USER, content="Write 2000 words about deadlines")
_CALLS = {
    "orchestrator": (
        ("ListRuns", orchestrator_pb2.ListRunsRequest()),
        ("Run", orchestrator_pb2.RunRequest(prompt="Write 2000 words about deadlines")),
    ),
    "llm-proxy": (
        ("ListModels", llm_proxy_pb2.ListModelsRequest()),
        ("Generate", llm_proxy_pb2.GenerateRequest(model="fast", messages=[_USER])),
    ),
    "tool-runner": (
        ("ListTools", tool_runner_pb2.ListToolsRequest()),
        (
            "CallTool",
            tool_runner_pb2.CallToolRequest(
                call_id="1", name="long_task", arguments_json='{"seconds": 60, "steps": 1000}'
            ),
        ),
    ),
}
_FULL_NAMES = {
    "orchestrator": "deadlinemesh.v1.OrchestratorService",
    "llm-proxy": "deadlinemesh.v1.LlmProxyService",
    "tool-runner": "deadlinemesh.v1.ToolRunnerService",
}


_TASKS_OF_CLIENT, _TASKS_OF_HOP = 3 * CLIENT_STREAMS, 3 * MESH_STREAMS
"""Two or three for each call. A hop's connection, which has shown the mesh's token, has the calls of all tenants."""


@dataclass(frozen=True, slots=True)
class Served:
    """A service under attack, and a well-behaved client of it, another tenant's."""

    server: MeshServer
    target: Target
    channel: grpc.aio.Channel
    most_tasks: int
    """Tasks that one connection may keep the event loop with."""

    async def answers(self, seconds: float) -> None:
        """Make a health check and a call, both of which must be answered within `seconds`."""
        health: Any = health_pb2_grpc.HealthStub(self.channel)
        told = await health.Check(health_pb2.HealthCheckRequest(), timeout=seconds)
        assert told.status == health_pb2.HealthCheckResponse.SERVING
        own = (pair for pair in self.target.metadata if pair[0] not in ("grpc-timeout", "deadline-remaining-us"))
        metadata = _NEIGHBOUR.get(self.target.metadata) or tuple(own)
        call: Any = self.channel.unary_unary(self.target.unary.path)
        await call(self.target.unary.body, timeout=seconds, metadata=metadata)


@asynccontextmanager
async def serving(service: str, folder: Path) -> AsyncIterator[Served]:
    """Serve one service, and behind an edge its orchestrator. Whatever became of it, it is stopped in the end."""
    policy = folder / "policy.yaml"
    policy.write_text(json.dumps(POLICY))  # JSON is YAML
    async with AsyncExitStack() as stack:

        async def start(name: str, **more: Any) -> MeshServer:
            settings = HopSettings(
                listen="127.0.0.1:0", policy_file=policy, mesh_token=TOKEN, drain_seconds=DRAIN_S, **more
            )
            server = assemble(name, settings, stack).server
            await server.start()
            stack.push_async_callback(server.stop)
            return server

        inner = {"pool": "", "llm_proxy": "127.0.0.1:1", "tool_runner": "127.0.0.1:1"}
        if service == "edge":
            behind = await start("orchestrator", **inner | {"pool": "shared"})
            server = await start("edge", orchestrator=f"127.0.0.1:{behind.port}")
        else:
            server = await start(service, **inner)
        hop = "orchestrator" if service == "edge" else service
        calls = [Call(f"/{_FULL_NAMES[hop]}/{name}", request.SerializeToString()) for name, request in _CALLS[hop]]
        target = Target(server.port, _AS_TENANT if hop == "orchestrator" else _AS_PEER, *calls)
        # A connection of its own, as another client's is.
        options = [("grpc.use_local_subchannel_pool", 1)]
        channel = await stack.enter_async_context(
            grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=options)
        )
        async with asyncio.timeout(20):
            await channel.channel_ready()
        yield Served(server, target, channel, _TASKS_OF_CLIENT if hop == "orchestrator" else _TASKS_OF_HOP)
