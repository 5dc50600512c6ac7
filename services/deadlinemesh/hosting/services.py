"""The services, each built from its parts. Processes and the in-memory mesh use the same code."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
from opentelemetry.trace import Tracer

from deadlinemesh import orchestrator
from deadlinemesh.deadline import Clock
from deadlinemesh.llm_proxy import servicer as llm_proxy
from deadlinemesh.llm_proxy.providers import Provider
from deadlinemesh.llm_proxy.service import ModelService
from deadlinemesh.policy import GoOver, Policy, Prepare
from deadlinemesh.policy.model import ToolsPolicy
from deadlinemesh.telemetry import Telemetry
from deadlinemesh.tool_runner import servicer as tool_runner
from deadlinemesh.tool_runner.cache import ResultCache
from deadlinemesh.tool_runner.kinds.connections import pooled_client
from deadlinemesh.tool_runner.service import ToolService
from deadlinemesh.tool_runner.workers.keeper import Keeper
from deadlinemesh.transport import DeadlineInterceptor, Gate, MeshChannel, MeshGate
from deadlinemesh.v1 import llm_proxy_pb2_grpc, tool_runner_pb2_grpc
from deadlinemesh.vocabulary.hops import EDGE, LLM_PROXY, ORCHESTRATOR, TOOL_RUNNER

__all__ = ["Parts", "Service", "edge_service", "llm_proxy_service", "orchestrator_service", "tool_runner_service"]

ClientGate = orchestrator.EdgeGate | orchestrator.GrantedGate
"""A gate that grants each call from a client, or takes the grant from the edge in front."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts that every service needs."""

    policy: Policy
    telemetry: Telemetry
    clock: Clock
    mesh_token: str
    tracer: Tracer | None = None
    interceptor_options: Mapping[str, Any] | None = None
    """Further arguments of each `DeadlineInterceptor`."""

    def interceptor(self, hop: str, gate: Gate) -> DeadlineInterceptor:
        """Make the interceptor of the service `hop`."""
        return DeadlineInterceptor(
            hop,
            gate,
            clock=self.clock,
            telemetry=self.telemetry,
            tracer=self.tracer,
            **(self.interceptor_options or {}),
        )

    def mesh_gate(self, hop: str) -> MeshGate:
        """Make the gate of the inner service `hop`."""
        return MeshGate(hop, self.mesh_token, self.clock)


@dataclass(frozen=True, slots=True)
class Service:
    """A service that has no server yet."""

    hop: str
    interceptor: DeadlineInterceptor
    core: orchestrator.Orchestrator | orchestrator.Forwarder | ModelService | ToolService
    """The service itself, without gRPC."""
    register: Callable[[Any], None]
    """Adds its methods to a server."""
    prepare: Prepare
    aclose: Callable[[], Awaitable[None]] | None = None
    """Closes the service, after its server has stopped."""
    warm: Callable[[], None] = lambda: None
    """Starts early the parts that the first call would wait for. May raise OSError."""
    flush: Callable[[], None] = lambda: None
    """Does all deferred work."""


def orchestrator_service(
    parts: Parts, gate: ClientGate, to_llm_proxy: MeshChannel, to_tool_runner: MeshChannel
) -> Service:
    """Build the orchestrator behind `gate`."""
    interceptor = parts.interceptor(ORCHESTRATOR, gate)
    service = orchestrator.Orchestrator(
        parts.policy,
        interceptor.background,
        orchestrator.GrpcModels(to_llm_proxy),
        orchestrator.GrpcTools(to_tool_runner),
        parts.telemetry,
        parts.clock,
    )
    register = orchestrator.OrchestratorServicer(service).register
    return Service(
        ORCHESTRATOR, interceptor, service, register, _all(gate.prepared, service.prepared), flush=service.flush
    )


def llm_proxy_service(parts: Parts, providers: Mapping[str, Provider] | None = None) -> Service:
    """Build the llm-proxy. `providers`, by model name, replace those of the policy."""
    interceptor = parts.interceptor(LLM_PROXY, parts.mesh_gate(LLM_PROXY))
    servicer = llm_proxy.build(parts.policy, parts.clock, providers, parts.telemetry)
    register = partial(llm_proxy_pb2_grpc.add_LlmProxyServiceServicer_to_server, servicer)
    return Service(LLM_PROXY, interceptor, servicer.service, register, servicer.prepared, servicer.aclose)


def tool_runner_service(
    parts: Parts,
    cache: ResultCache | None = None,
    http_client: Callable[[ToolsPolicy], httpx.AsyncClient] = pooled_client,
    keeper: Callable[[], Keeper] = Keeper,
) -> Service:
    """Build the tool-runner. See `tool_runner.servicer.build` for the optional arguments."""
    interceptor = parts.interceptor(TOOL_RUNNER, parts.mesh_gate(TOOL_RUNNER))
    servicer = tool_runner.build(
        parts.policy, parts.clock, parts.telemetry, interceptor.background, cache, http_client, keeper
    )
    register = partial(tool_runner_pb2_grpc.add_ToolRunnerServiceServicer_to_server, servicer)
    return Service(
        TOOL_RUNNER, interceptor, servicer.service, register, servicer.prepared, servicer.aclose, servicer.warm
    )


def edge_service(parts: Parts, orchestrators: Mapping[str, MeshChannel]) -> Service:
    """Build the edge in front of `orchestrators`: the channel of each pool."""
    forwarder = orchestrator.Forwarder(parts.policy, orchestrators, parts.telemetry, parts.clock)
    gate = orchestrator.EdgeGate(parts.policy, parts.clock, parts.telemetry, EDGE)
    interceptor = parts.interceptor(EDGE, gate)
    return Service(EDGE, interceptor, forwarder, forwarder.register, _all(gate.prepared, forwarder.prepared))


def _all(*parts: Prepare) -> Prepare:
    """Join several parts into one. None of them may have old resources to close."""

    def prepare(policy: Policy) -> GoOver:
        ready = [part(policy) for part in parts]

        def go_over() -> None:
            for go in ready:
                go()

        return go_over

    return prepare
