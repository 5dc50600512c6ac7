"""The service of this process, built from its settings and its policy."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from opentelemetry.trace import Tracer

from deadlinemesh.deadline import SYSTEM_CLOCK
from deadlinemesh.deadline.lowlevel import end_processes, inherit_processes
from deadlinemesh.errors import choices
from deadlinemesh.hosting import policy_status
from deadlinemesh.hosting.services import (
    Parts,
    Service,
    edge_service,
    llm_proxy_service,
    orchestrator_service,
    tool_runner_service,
)
from deadlinemesh.hosting.settings import HopSettings
from deadlinemesh.orchestrator import EdgeGate, GrantedGate
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
from deadlinemesh.tool_runner.workers.keeper import Keeper
from deadlinemesh.tool_runner.workers.marks import kill_marked, mark_process, new_mark, own_mark
from deadlinemesh.transport import MeshChannel, MeshServer, mesh_channel
from deadlinemesh.vocabulary.hops import EDGE, GRPC_SERVICES, LLM_PROXY, ORCHESTRATOR, TOOL_RUNNER

__all__ = ["Hop", "assemble"]


@dataclass(frozen=True, slots=True)
class Hop:
    """A service, ready to be started."""

    server: MeshServer
    policy_file: PolicyFile | None
    """The source of its policy; None for the embedded policy."""
    prepare: Prepare
    """Prepares the service for another policy."""
    tell: Callable[[PolicyStatus], None]
    """Reports the policy in force, or the reason why a new one was refused."""


def assemble(name: str, settings: HopSettings, stack: AsyncExitStack) -> Hop:
    """Build the service `name`. `stack` closes its resources, after its server has stopped.

    Raises PolicyError, ValueError or OSError for invalid settings.
    """
    file = None if settings.policy_file is None else PolicyFile(settings.policy_file)
    policy = default_policy() if file is None else file.load()
    sinks: list[Sink] = [LogSink()]
    # The first entry of the stack is closed last: telemetry ends after all events are recorded.
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
    process = _Process(settings, policy, Telemetry([told]), tracer, stack)
    service = _BUILDERS[name](process)
    stack.callback(service.flush)
    if service.aclose is not None:
        stack.push_async_callback(service.aclose)
    service.warm()

    def prepare_if_possible(policy: Policy) -> GoOver:
        refuse_what_stands(process.policy, policy)
        return service.prepare(policy)

    tell = partial(_tell, name, process.telemetry, settings.policy_status_file)
    tell(PolicyStatus("", time.time()) if file is None else file.status)
    return Hop(process.server(service), file, prepare_if_possible, tell)


def _tell(name: str, telemetry: Telemetry, path: Path | None, status: PolicyStatus) -> None:
    if status.why:
        telemetry.record(PolicyRefused(name, status.refused, status.why))
    else:
        telemetry.record(PolicyInForce(name, status.digest))
    if path is not None:
        policy_status.write(path, name, status)


class _Process:
    """The settings of this process, and the parts of its service."""

    def __init__(
        self,
        settings: HopSettings,
        policy: Policy,
        telemetry: Telemetry,
        tracer: Tracer | None,
        stack: AsyncExitStack,
    ) -> None:
        self.settings = settings
        self.policy = policy
        self.telemetry = telemetry
        self.stack = stack
        self._tracer = tracer

    @property
    def parts(self) -> Parts:
        """The parts of the service."""
        options = {"request_seconds": self.settings.request_seconds, "watches": self.settings.watches}
        return Parts(self.policy, self.telemetry, SYSTEM_CLOCK, self.settings.token(), self._tracer, options)

    def channel(self, target: str, hop: str) -> MeshChannel:
        """A channel to the instances of an inner service. The stack closes it."""
        channel = mesh_channel(
            target,
            mesh_token=self.settings.token(),
            message_bytes=self.policy.limits.message_bytes,
            keepalive=self.settings.keepalive_seconds,
            tracer=self._tracer,
            healthy=GRPC_SERVICES[hop],
        )
        self.stack.push_async_callback(channel.close)
        return channel

    def server(self, service: Service) -> MeshServer:
        """The server of the service."""
        longest_budget = max(tier.run_budget for tier in self.policy.tiers.values())
        settings = self.settings.server(service.hop, self.policy.limits.message_bytes, longest_budget)
        return MeshServer(settings, service.interceptor, [(GRPC_SERVICES[service.hop], service.register)])


def _edge(process: _Process) -> Service:
    settings, policy = process.settings, process.policy
    where = {SHARED: settings.orchestrator, **settings.dedicated}
    unknown = [pool for pool in policy.pools() if pool not in where]
    if unknown:
        raise ValueError(
            f"DMESH_DEDICATED: policy gives processes of their own to {', '.join(unknown)}: "
            'name each one\'s orchestrator, as in {"acme": "dns:///orchestrator-acme:50051"}'
        )
    if SHARED in policy.pools() and not settings.orchestrator:
        raise ValueError("DMESH_ORCHESTRATOR: is empty, and policy has tenants that are not dedicated")
    channels = {pool: process.channel(where[pool], ORCHESTRATOR) for pool in policy.pools()}
    return edge_service(process.parts, channels)


def _orchestrator(process: _Process) -> Service:
    llm_proxy = process.channel(process.settings.llm_proxy, LLM_PROXY)
    tool_runner = process.channel(process.settings.tool_runner, TOOL_RUNNER)
    return orchestrator_service(process.parts, _orchestrator_gate(process), llm_proxy, tool_runner)


def _orchestrator_gate(process: _Process) -> EdgeGate | GrantedGate:
    policy, pool = process.policy, process.settings.pool
    if pool:
        if pool not in (SHARED, *policy.pools()):
            raise ValueError(f"DMESH_POOL: policy has no pool {pool!r}: {choices(policy.pools())}")
        return GrantedGate(policy, pool, process.settings.token())
    if policy.pools() != (SHARED,):
        raise ValueError(
            f"DMESH_POOL: policy gives some tenants processes of their own, so clients call `dmesh serve edge`, and this "
            f"must know whose runs it serves: {choices(policy.pools())}"
        )
    return EdgeGate(policy, telemetry=process.telemetry)


def _llm_proxy(process: _Process) -> Service:
    return llm_proxy_service(process.parts)


def _tool_runner(process: _Process) -> Service:
    inherit_processes()
    mark_process(new_mark())
    process.stack.callback(kill_marked, own_mark(), {os.getpid()})  # unseen processes of tools
    process.stack.callback(end_processes)
    return tool_runner_service(process.parts, keeper=partial(Keeper, uids=process.settings.worker_uids))


_BUILDERS = {ORCHESTRATOR: _orchestrator, LLM_PROXY: _llm_proxy, TOOL_RUNNER: _tool_runner, EDGE: _edge}
