"""The three services wired together in memory, on whatever clock the event loop has: real servicers, real stubs, no sockets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import httpx

from deadlinemesh import orchestrator
from deadlinemesh.deadline import Clock
from deadlinemesh.llm_proxy import servicer as llm_proxy
from deadlinemesh.llm_proxy.providers import Provider
from deadlinemesh.policy import Policy, with_fresh_keys
from deadlinemesh.policy.model import ToolsPolicy
from deadlinemesh.telemetry import CountingSink, Telemetry
from deadlinemesh.testing.memory import MemoryChannel, MemoryServer
from deadlinemesh.tool_runner import servicer as tool_runner
from deadlinemesh.tool_runner.cache import ResultCache
from deadlinemesh.tool_runner.kinds.connections import pooled_client
from deadlinemesh.transport import DeadlineInterceptor, Gate, MeshChannel, MeshGate
from deadlinemesh.v1 import llm_proxy_pb2_grpc, orchestrator_pb2_grpc, tool_runner_pb2_grpc

__all__ = ["MemoryMesh"]

_TOKEN = "memory"


class MemoryMesh:
    """A mesh for `policy`, whose tenants get fresh keys, on `clock`. Every hop is `transit` seconds from its caller.

    `rounding` stretches each `grpc-timeout` as the C core does. `providers`, by the models' names, replace those of policy,
    `cache` the tool-runner's store, and `http_client` the client of its HTTP tools.
    """

    def __init__(
        self,
        policy: Policy,
        clock: Clock,
        *,
        transit: float = 0.0,
        rounding: float = 1.0,
        providers: Mapping[str, Provider] | None = None,
        cache: ResultCache | None = None,
        http_client: Callable[[ToolsPolicy], httpx.AsyncClient] = pooled_client,
    ) -> None:
        self.policy, self.keys = with_fresh_keys(policy)
        self.events = CountingSink()
        telemetry = Telemetry([self.events])
        gates: dict[str, Gate] = {
            orchestrator.HOP: orchestrator.EdgeGate(self.policy, clock),
            llm_proxy.HOP: MeshGate(llm_proxy.HOP, _TOKEN, clock),
            tool_runner.HOP: MeshGate(tool_runner.HOP, _TOKEN, clock),
        }
        self.hops = {
            hop: DeadlineInterceptor(hop, gate, clock=clock, telemetry=telemetry) for hop, gate in gates.items()
        }
        servers: dict[str, Any] = {hop: MemoryServer(interceptor) for hop, interceptor in self.hops.items()}
        channels = {hop: MemoryChannel(server, transit=transit, rounding=rounding) for hop, server in servers.items()}
        llm_proxy_pb2_grpc.add_LlmProxyServiceServicer_to_server(
            llm_proxy.build(self.policy, clock, providers, telemetry), servers[llm_proxy.HOP]
        )
        tool_runner_pb2_grpc.add_ToolRunnerServiceServicer_to_server(
            tool_runner.build(self.policy, clock, telemetry, self.hops[tool_runner.HOP].background, cache, http_client),
            servers[tool_runner.HOP],
        )
        edge = self.hops[orchestrator.HOP]
        servicer = orchestrator.OrchestratorServicer(
            self.policy,
            edge.background,
            orchestrator.GrpcModels(MeshChannel(channels[llm_proxy.HOP], _TOKEN)),
            orchestrator.GrpcTools(MeshChannel(channels[tool_runner.HOP], _TOKEN)),
            telemetry,
            clock,
        )
        orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server(servicer, servers[orchestrator.HOP])
        self.channel = channels[orchestrator.HOP]
        """What a client dials."""

    def credentials(self, tenant_id: str) -> tuple[tuple[str, str], ...]:
        """The metadata with which `tenant_id` calls."""
        return (("authorization", f"Bearer {self.keys[tenant_id]}"),)

    async def idle(self) -> None:
        """Return once no hop has anything at work."""
        for interceptor in self.hops.values():
            await interceptor.scopes.emptied()
