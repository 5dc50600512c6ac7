"""Puts each service together from its parts. The only place where they meet."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Tracer

from deadlinemesh import orchestrator
from deadlinemesh.cli.settings import HopSettings
from deadlinemesh.llm_proxy import servicer as llm_proxy
from deadlinemesh.policy import Policy, default_policy, load
from deadlinemesh.telemetry import JsonLinesSink, LogSink, MetricsSink, Sink, Telemetry
from deadlinemesh.telemetry.tracing import tracing_to
from deadlinemesh.tool_runner import servicer as tool_runner
from deadlinemesh.transport import DeadlineInterceptor, Gate, MeshGate, MeshServer, mesh_channel
from deadlinemesh.v1 import llm_proxy_pb2_grpc, orchestrator_pb2_grpc, tool_runner_pb2_grpc

__all__ = ["Hop", "assemble"]


@dataclass(slots=True)
class Hop:
    """A service ready to start, and what to close when its server has stopped."""

    name: str
    server: MeshServer
    closers: tuple[Callable[[], Awaitable[None]], ...]
    traces: TracerProvider | None

    async def aclose(self) -> None:
        """Close what the server used, in order."""
        for close in self.closers:
            await close()
        if self.traces is not None:
            self.traces.shutdown()


def assemble(name: str, settings: HopSettings) -> Hop:
    """Build the service `name`. Raises PolicyError, ValueError or OSError for what is wrong with its settings."""
    policy = default_policy() if settings.policy_file is None else load(settings.policy_file)
    traces = tracing_to(settings.traces, name)
    sinks: list[Sink] = [LogSink(), MetricsSink()]
    if settings.events_file is not None:
        sinks.append(JsonLinesSink(settings.events_file))
    telemetry = Telemetry(sinks)
    tracer = None if traces is None else traces.get_tracer("deadlinemesh")
    build = {"orchestrator": _orchestrator, "llm-proxy": _llm_proxy, "tool-runner": _tool_runner}[name]
    server, closers = build(settings, policy, telemetry, tracer)
    return Hop(name, server, closers, traces)


Built = tuple[MeshServer, tuple[Callable[[], Awaitable[None]], ...]]


def _orchestrator(settings: HopSettings, policy: Policy, telemetry: Telemetry, tracer: Tracer | None) -> Built:
    open_channel = partial(
        mesh_channel,
        mesh_token=settings.token(),
        message_bytes=policy.limits.message_bytes,
        keepalive=settings.keepalive_seconds,
        tracer=tracer,
    )
    llm, tools = open_channel(settings.llm_proxy), open_channel(settings.tool_runner)
    interceptor = _interceptor(orchestrator.HOP, orchestrator.EdgeGate(policy), telemetry, tracer)
    servicer = orchestrator.OrchestratorServicer(
        policy, interceptor.background, orchestrator.GrpcModels(llm), orchestrator.GrpcTools(tools), telemetry
    )
    register = partial(orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server, servicer)
    service = ("deadlinemesh.v1.OrchestratorService", register)
    return _server(settings, policy, interceptor, service), (llm.close, tools.close)


def _llm_proxy(settings: HopSettings, policy: Policy, telemetry: Telemetry, tracer: Tracer | None) -> Built:
    interceptor = _interceptor(llm_proxy.HOP, MeshGate(llm_proxy.HOP, settings.token()), telemetry, tracer)
    servicer = llm_proxy.build(policy)
    register = partial(llm_proxy_pb2_grpc.add_LlmProxyServiceServicer_to_server, servicer)
    service = ("deadlinemesh.v1.LlmProxyService", register)
    return _server(settings, policy, interceptor, service), (servicer.aclose,)


def _tool_runner(settings: HopSettings, policy: Policy, telemetry: Telemetry, tracer: Tracer | None) -> Built:
    interceptor = _interceptor(tool_runner.HOP, MeshGate(tool_runner.HOP, settings.token()), telemetry, tracer)
    servicer = tool_runner.build(policy)
    register = partial(tool_runner_pb2_grpc.add_ToolRunnerServiceServicer_to_server, servicer)
    service = ("deadlinemesh.v1.ToolRunnerService", register)
    return _server(settings, policy, interceptor, service), (servicer.aclose,)


def _interceptor(hop: str, gate: Gate, telemetry: Telemetry, tracer: Tracer | None) -> DeadlineInterceptor:
    return DeadlineInterceptor(hop, gate, telemetry=telemetry, tracer=tracer)


def _server(
    settings: HopSettings, policy: Policy, interceptor: DeadlineInterceptor, service: tuple[str, Callable[..., None]]
) -> MeshServer:
    return MeshServer(settings.server(interceptor.hop, policy.limits.message_bytes), interceptor, [service])
