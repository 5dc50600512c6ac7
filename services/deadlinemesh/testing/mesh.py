"""The three services wired together in memory, on whatever clock the event loop has: real servicers, real stubs, no sockets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import httpx

from deadlinemesh import orchestrator
from deadlinemesh.deadline import Clock
from deadlinemesh.llm_proxy import servicer as llm_proxy
from deadlinemesh.llm_proxy.providers import Provider
from deadlinemesh.policy import SHARED, Policy, Prepare, Rest, with_fresh_keys
from deadlinemesh.policy.model import ToolsPolicy
from deadlinemesh.telemetry import CountingSink, Telemetry
from deadlinemesh.testing.memory import MemoryChannel, MemoryServer
from deadlinemesh.tool_runner import servicer as tool_runner
from deadlinemesh.tool_runner.cache import ResultCache
from deadlinemesh.tool_runner.kinds.connections import pooled_client
from deadlinemesh.tool_runner.workers.keeper import Keeper
from deadlinemesh.transport import DeadlineInterceptor, Gate, MeshChannel, MeshGate
from deadlinemesh.v1 import llm_proxy_pb2_grpc, tool_runner_pb2_grpc

__all__ = ["MemoryMesh"]

_TOKEN = "memory"


class MemoryMesh:
    """A mesh for `policy`, whose tenants get fresh keys, on `clock`. Every hop is `transit` seconds from its caller.

    `rounding` stretches each `grpc-timeout` as the C core does. `providers`, by the models' names, replace those of policy,
    `cache` the tool-runners' store, `http_client` the client of their HTTP tools, and `keeper` what starts their worker processes.
    Where policy dedicates anything there is an edge, as in `dmesh up`.
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
        keeper: Callable[[], Keeper] = Keeper,
    ) -> None:
        self.policy, self.keys = with_fresh_keys(policy)
        self.events = CountingSink()
        telemetry = Telemetry([self.events])
        self.hops: dict[str, DeadlineInterceptor] = {}
        """By name; those of a dedicated pool are called `orchestrator:POOL` and `tool-runner:POOL`."""
        channels: dict[str, MemoryChannel] = {}
        self._prepare: list[Prepare] = []
        self._rests: list[Rest] = []
        self._servicers: list[orchestrator.OrchestratorServicer] = []

        def serve(name: str, hop: str, gate: Gate) -> tuple[DeadlineInterceptor, Any]:
            interceptor = self.hops[name] = DeadlineInterceptor(hop, gate, clock=clock, telemetry=telemetry)
            server = MemoryServer(interceptor)
            channels[name] = MemoryChannel(server, transit=transit, rounding=rounding)
            return interceptor, server

        def to(name: str) -> MeshChannel:
            return MeshChannel(channels[name], _TOKEN)

        def serve_pool(pool: str, gate: orchestrator.EdgeGate | orchestrator.GrantedGate) -> str:
            runner, name = (hop if pool == SHARED else f"{hop}:{pool}" for hop in (tool_runner.HOP, orchestrator.HOP))
            interceptor, server = serve(runner, tool_runner.HOP, MeshGate(tool_runner.HOP, _TOKEN, clock))
            tools = tool_runner.build(self.policy, clock, telemetry, interceptor.background, cache, http_client, keeper)
            tool_runner_pb2_grpc.add_ToolRunnerServiceServicer_to_server(tools, server)
            self._prepare += [tools.prepared, gate.prepared]
            interceptor, server = serve(name, orchestrator.HOP, gate)
            servicer = orchestrator.OrchestratorServicer(
                self.policy,
                interceptor.background,
                orchestrator.GrpcModels(to(llm_proxy.HOP)),
                orchestrator.GrpcTools(to(runner)),
                telemetry,
                clock,
            )
            servicer.register(server)
            self._servicers.append(servicer)
            self._prepare.append(servicer.prepared)
            return name

        _, server = serve(llm_proxy.HOP, llm_proxy.HOP, MeshGate(llm_proxy.HOP, _TOKEN, clock))
        models = llm_proxy.build(self.policy, clock, providers, telemetry)
        llm_proxy_pb2_grpc.add_LlmProxyServiceServicer_to_server(models, server)
        self._prepare.append(models.prepared)
        edge = orchestrator.EdgeGate(self.policy, clock, telemetry)
        if self.policy.pools() == (SHARED,):
            outermost = serve_pool(SHARED, edge)
        else:
            found = {
                pool: to(serve_pool(pool, orchestrator.GrantedGate(self.policy, pool, _TOKEN, clock)))
                for pool in self.policy.pools()
            }
            outermost = orchestrator.EDGE
            _, server = serve(outermost, orchestrator.EDGE, edge)
            forwarder = orchestrator.Forwarder(self.policy, found, telemetry, clock)
            forwarder.register(server)
            self._prepare += [edge.prepared, forwarder.prepared]
        self.channels = channels
        """What each hop is dialled by, without the mesh's token."""
        self.channel = channels[outermost]
        """What a client dials."""

    def use(self, policy: Policy) -> None:
        """Go over to `policy` at every hop, at once; tenants keep their keys. What earlier ones used is not closed."""
        policy, self.keys = with_fresh_keys(policy, self.keys)
        for go_over in [prepare(policy) for prepare in self._prepare]:
            if (rest := go_over()) is not None:
                self._rests.append(rest)
        self.policy = policy

    def credentials(self, tenant_id: str) -> tuple[tuple[str, str], ...]:
        """The metadata with which `tenant_id` calls."""
        return (("authorization", f"Bearer {self.keys[tenant_id]}"),)

    async def idle(self) -> None:
        """Return once no hop has anything at work, and all is told of what was."""
        while any(len(interceptor.scopes) for interceptor in self.hops.values()):
            for interceptor in self.hops.values():
                await interceptor.scopes.emptied()
        self.flush()

    def flush(self) -> None:
        """Tell now of every run that has ended."""
        for servicer in self._servicers:
            servicer.flush()
