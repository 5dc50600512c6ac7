"""Puts each service together from its parts. The only place where they meet."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from grpc.aio import Server
from opentelemetry.trace import Tracer

from deadlinemesh import orchestrator
from deadlinemesh.cli import policy_status
from deadlinemesh.cli.settings import HopSettings
from deadlinemesh.deadline.processes import end_processes, inherit_processes
from deadlinemesh.errors import choices
from deadlinemesh.llm_proxy import servicer as llm_proxy
from deadlinemesh.policy import (
    SHARED,
    GoOver,
    Policy,
    PolicyFile,
    PolicyStatus,
    Prepare,
    default_policy,
    refuse_what_stands,
)
from deadlinemesh.telemetry import (
    JsonLinesSink,
    LogSink,
    MetricsSink,
    PolicyInForce,
    PolicyRefused,
    Sink,
    Telemetry,
    WhenIdle,
)
from deadlinemesh.telemetry.logs import count_lost
from deadlinemesh.telemetry.metering import LAST_EXPORT, metering_to
from deadlinemesh.telemetry.tracing import tracing_to
from deadlinemesh.tool_runner import servicer as tool_runner
from deadlinemesh.tool_runner.workers.keeper import Keeper
from deadlinemesh.tool_runner.workers.marks import kill_marked, mark_process, new_mark, own_mark
from deadlinemesh.transport import DeadlineInterceptor, Gate, MeshChannel, MeshGate, MeshServer, mesh_channel
from deadlinemesh.v1 import llm_proxy_pb2_grpc, tool_runner_pb2_grpc

__all__ = ["Hop", "assemble"]


@dataclass(frozen=True, slots=True)
class Hop:
    """A service, ready to be started."""

    server: MeshServer
    policy_file: PolicyFile | None
    """Where its policy comes from; None for the embedded one."""
    prepare: Prepare
    """Makes what another policy needs."""
    tell: Callable[[PolicyStatus], None]
    """Tells which policy is in force, and why another is not."""


def assemble(name: str, settings: HopSettings, stack: AsyncExitStack) -> Hop:
    """Build the service `name`; what it uses is closed with `stack`, after its server has stopped.

    Raises PolicyError, ValueError or OSError for what is wrong with its settings.
    """
    file = None if settings.policy_file is None else PolicyFile(settings.policy_file)
    policy = default_policy() if file is None else file.load()
    sinks: list[Sink] = [LogSink()]
    # What is entered first is closed last: once everything has been told.
    meters = metering_to(settings.metrics, name)
    if meters is not None:
        stack.callback(meters.shutdown, LAST_EXPORT)
        meter = meters.get_meter("deadlinemesh")
        count_lost(meter)
        sinks.append(MetricsSink(meter))
    if settings.events_file is not None:
        lines = JsonLinesSink(settings.events_file)
        stack.callback(lines.close)
        sinks.append(lines)
    told = WhenIdle(sinks)
    stack.callback(told.flush)
    traces = tracing_to(settings.traces, name)
    if traces is not None:
        stack.callback(traces.shutdown)
    tracer = None if traces is None else traces.get_tracer("deadlinemesh")
    parts = _Parts(settings, policy, Telemetry([told]), tracer, stack)
    build = {"orchestrator": _orchestrator, "llm-proxy": _llm_proxy, "tool-runner": _tool_runner, "edge": _edge}[name]
    server, prepare = build(parts)

    def prepare_if_possible(policy: Policy) -> GoOver:
        refuse_what_stands(parts.policy, policy)
        return prepare(policy)

    tell = partial(_tell, name, parts.telemetry, settings.policy_status_file)
    tell(PolicyStatus("", time.time()) if file is None else file.status)
    return Hop(server, file, prepare_if_possible, tell)


def _tell(name: str, telemetry: Telemetry, path: Path | None, status: PolicyStatus) -> None:
    if status.why:
        telemetry.record(PolicyRefused(name, status.refused, status.why))
    else:
        telemetry.record(PolicyInForce(name, status.digest))
    if path is not None:
        policy_status.write(path, name, status)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What every service is made of."""

    settings: HopSettings
    policy: Policy
    telemetry: Telemetry
    tracer: Tracer | None
    stack: AsyncExitStack

    def channel(self, target: str, service: str) -> MeshChannel:
        """A channel to the instances of an inner hop that serve `service`, closed with the rest."""
        channel = mesh_channel(
            target,
            mesh_token=self.settings.token(),
            message_bytes=self.policy.limits.message_bytes,
            keepalive=self.settings.keepalive_seconds,
            tracer=self.tracer,
            healthy=service,
        )
        self.stack.push_async_callback(channel.close)
        return channel

    def interceptor(self, hop: str, gate: Gate) -> DeadlineInterceptor:
        """The door of the service."""
        return DeadlineInterceptor(
            hop,
            gate,
            telemetry=self.telemetry,
            tracer=self.tracer,
            request_seconds=self.settings.request_seconds,
            watches=self.settings.watches,
        )

    def mesh_gate(self, hop: str) -> MeshGate:
        """The gate of an inner service."""
        return MeshGate(hop, self.settings.token())

    def server(self, interceptor: DeadlineInterceptor, service: str, register: Callable[[Server], None]) -> MeshServer:
        """The service's server."""
        longest_budget = max(tier.run_budget for tier in self.policy.tiers.values())
        settings = self.settings.server(interceptor.hop, self.policy.limits.message_bytes, longest_budget)
        return MeshServer(settings, interceptor, [(service, register)])


_ORCHESTRATOR = "deadlinemesh.v1.OrchestratorService"
_LLM_PROXY = "deadlinemesh.v1.LlmProxyService"
_TOOL_RUNNER = "deadlinemesh.v1.ToolRunnerService"


_Built = tuple[MeshServer, Prepare]


def _edge(parts: _Parts) -> _Built:
    settings, policy = parts.settings, parts.policy
    where = {SHARED: settings.orchestrator, **settings.dedicated}
    unknown = [pool for pool in policy.pools() if pool not in where]
    if unknown:
        raise ValueError(
            f"DMESH_DEDICATED: policy gives processes of their own to {', '.join(unknown)}: "
            'name each one\'s orchestrator, as in {"acme": "dns:///orchestrator-acme:50051"}'
        )
    if SHARED in policy.pools() and not settings.orchestrator:
        raise ValueError("DMESH_ORCHESTRATOR: is empty, and policy has tenants that are not dedicated")
    forwarder = orchestrator.Forwarder(
        policy, {pool: parts.channel(where[pool], _ORCHESTRATOR) for pool in policy.pools()}, parts.telemetry
    )
    gate = orchestrator.EdgeGate(policy, telemetry=parts.telemetry, hop=orchestrator.EDGE)
    interceptor = parts.interceptor(orchestrator.EDGE, gate)

    prepare = _all(gate.prepared, forwarder.prepared)
    return parts.server(interceptor, _ORCHESTRATOR, forwarder.register), prepare


def _all(*parts: Prepare) -> Prepare:
    """Prepare several parts, none of which leaves anything of the policy before."""

    def prepare(policy: Policy) -> GoOver:
        ready = [part(policy) for part in parts]

        def go_over() -> None:
            for go in ready:
                go()

        return go_over

    return prepare


def _orchestrator_gate(parts: _Parts) -> orchestrator.EdgeGate | orchestrator.GrantedGate:
    policy, pool = parts.policy, parts.settings.pool
    if pool:
        if pool not in (SHARED, *policy.pools()):
            raise ValueError(f"DMESH_POOL: policy has no pool {pool!r}: {choices(policy.pools())}")
        return orchestrator.GrantedGate(policy, pool, parts.settings.token())
    if policy.pools() != (SHARED,):
        raise ValueError(
            f"DMESH_POOL: policy gives some tenants processes of their own, so clients call `dmesh serve edge`, and this "
            f"must know whose runs it serves: {choices(policy.pools())}"
        )
    return orchestrator.EdgeGate(policy, telemetry=parts.telemetry)


def _orchestrator(parts: _Parts) -> _Built:
    gate = _orchestrator_gate(parts)
    interceptor = parts.interceptor(orchestrator.HOP, gate)
    servicer = orchestrator.OrchestratorServicer(
        parts.policy,
        interceptor.background,
        orchestrator.GrpcModels(parts.channel(parts.settings.llm_proxy, _LLM_PROXY)),
        orchestrator.GrpcTools(parts.channel(parts.settings.tool_runner, _TOOL_RUNNER)),
        parts.telemetry,
    )
    parts.stack.callback(servicer.flush)
    return parts.server(interceptor, _ORCHESTRATOR, servicer.register), _all(gate.prepared, servicer.prepared)


def _llm_proxy(parts: _Parts) -> _Built:
    interceptor = parts.interceptor(llm_proxy.HOP, parts.mesh_gate(llm_proxy.HOP))
    servicer = llm_proxy.build(parts.policy, telemetry=parts.telemetry)
    parts.stack.push_async_callback(servicer.aclose)
    register = partial(llm_proxy_pb2_grpc.add_LlmProxyServiceServicer_to_server, servicer)
    return parts.server(interceptor, _LLM_PROXY, register), servicer.prepared


def _tool_runner(parts: _Parts) -> _Built:
    interceptor = parts.interceptor(tool_runner.HOP, parts.mesh_gate(tool_runner.HOP))
    inherit_processes()
    mark_process(new_mark())
    parts.stack.callback(kill_marked, own_mark(), {os.getpid()})  # what was started by means that nobody was told of
    parts.stack.callback(end_processes)
    servicer = tool_runner.build(
        parts.policy,
        telemetry=parts.telemetry,
        background=interceptor.background,
        keeper=partial(Keeper, uids=parts.settings.worker_uids),
    )
    parts.stack.push_async_callback(servicer.aclose)
    servicer.warm()
    register = partial(tool_runner_pb2_grpc.add_ToolRunnerServiceServicer_to_server, servicer)
    return parts.server(interceptor, _TOOL_RUNNER, register), servicer.prepared
