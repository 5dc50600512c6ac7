"""The mesh in memory, on the event loop's clock: real servicers, real stubs, no sockets."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import httpx

from deadlinemesh.deadline import Clock
from deadlinemesh.hosting.services import (
    Parts,
    Service,
    edge_service,
    llm_proxy_service,
    orchestrator_service,
    tool_runner_service,
)
from deadlinemesh.identity.keys import with_fresh_keys
from deadlinemesh.llm_proxy.providers import Provider
from deadlinemesh.orchestrator import EdgeGate, GrantedGate, Orchestrator
from deadlinemesh.policy import SHARED, Policy, Rest
from deadlinemesh.policy.model import ToolsPolicy
from deadlinemesh.telemetry import CountingSink, Telemetry
from deadlinemesh.testing.memory import MemoryChannel, MemoryServer
from deadlinemesh.tool_runner.cache import ResultCache
from deadlinemesh.tool_runner.kinds.connections import pooled_client
from deadlinemesh.tool_runner.workers.keeper import Keeper
from deadlinemesh.transport import DeadlineInterceptor, MeshChannel
from deadlinemesh.vocabulary.hops import EDGE, LLM_PROXY, ORCHESTRATOR, TOOL_RUNNER

__all__ = ["MemoryMesh"]

_TOKEN = "memory"


class MemoryMesh:
    """A mesh for `policy` on `clock`. Its tenants get fresh keys. Every hop is `transit` seconds
    from its caller.

    `rounding` stretches each `grpc-timeout` as the C core does. `providers`, by model name, replace
    the providers of the policy. `cache` replaces the store of the tool-runners, `http_client` the
    client of their HTTP tools, and `keeper` the starter of their worker processes.

    If the policy has dedicated pools, there is an edge, as in `dmesh up`.
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
        """The interceptors by name. Those of a dedicated pool are `orchestrator:POOL` and
        `tool-runner:POOL`.
        """
        self.channels: dict[str, MemoryChannel] = {}
        """A channel to each hop, without the mesh's token."""
        self._transit = transit
        self._rounding = rounding
        self._services: list[Service] = []
        self._rests: list[Rest] = []
        parts = Parts(self.policy, telemetry, clock, _TOKEN)

        def serve_pool(pool: str, gate: EdgeGate | GrantedGate) -> str:
            runner, name = (hop if pool == SHARED else f"{hop}:{pool}" for hop in (TOOL_RUNNER, ORCHESTRATOR))
            self._serve(runner, tool_runner_service(parts, cache, http_client, keeper))
            service = orchestrator_service(parts, gate, self._to(LLM_PROXY), self._to(runner))
            return self._serve(name, service)

        self._serve(LLM_PROXY, llm_proxy_service(parts, providers))
        pools = self.policy.pools()
        if pools == (SHARED,):
            outermost = serve_pool(SHARED, EdgeGate(self.policy, clock, telemetry))
        else:
            gates = {pool: GrantedGate(self.policy, pool, _TOKEN, clock) for pool in pools}
            orchestrators = {pool: self._to(serve_pool(pool, gate)) for pool, gate in gates.items()}
            outermost = self._serve(EDGE, edge_service(parts, orchestrators))
        self.channel = self.channels[outermost]
        """The channel for clients, to the outermost hop."""

    def _serve(self, name: str, service: Service) -> str:
        server = MemoryServer(service.interceptor)
        service.register(server)
        self.hops[name] = service.interceptor
        self.channels[name] = MemoryChannel(server, transit=self._transit, rounding=self._rounding)
        self._services.append(service)
        return name

    def _to(self, name: str) -> MeshChannel:
        return MeshChannel(self.channels[name], _TOKEN)

    @property
    def orchestrators(self) -> list[Orchestrator]:
        """The orchestrators of all pools."""
        return [service.core for service in self._services if isinstance(service.core, Orchestrator)]

    def reconfigure(self, policy: Policy) -> None:
        """Apply `policy` at every hop at once. Tenants keep their keys. Resources of earlier
        policies stay open.
        """
        policy, self.keys = with_fresh_keys(policy, self.keys)
        for go_over in [service.prepare(policy) for service in self._services]:
            if (rest := go_over()) is not None:
                self._rests.append(rest)
        self.policy = policy

    def credentials(self, tenant_id: str) -> tuple[tuple[str, str], ...]:
        """The metadata for calls of `tenant_id`."""
        return (("authorization", f"Bearer {self.keys[tenant_id]}"),)

    async def idle(self) -> None:
        """Return once every hop is idle, and all ended work has been reported."""
        while any(len(interceptor.scopes) for interceptor in self.hops.values()):
            for interceptor in self.hops.values():
                await interceptor.scopes.emptied()
        self.flush()

    def flush(self) -> None:
        """Report now every run that has ended."""
        for service in self._services:
            service.flush()
