"""The gRPC face of the orchestrator: turns messages into the domain's words and back, and does nothing else."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from itertools import chain
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from deadlinemesh.admission import Bulkhead
from deadlinemesh.conversation import Message, Role, ToolSpec, history_violations
from deadlinemesh.deadline import SYSTEM_CLOCK, Background, Clock, Phase
from deadlinemesh.errors import (
    Cause,
    InvalidRequest,
    NotFound,
    TooLarge,
    UpstreamFailed,
    Violation,
    Violations,
    choices,
    shown,
)
from deadlinemesh.orchestrator.agent import Assignment
from deadlinemesh.orchestrator.catalog import Catalog, Listed
from deadlinemesh.orchestrator.edge import HOP, Grant, current_grant
from deadlinemesh.orchestrator.events import (
    PhaseChanged,
    RunEvent,
    RunFinished,
    RunStarted,
    TextDelta,
    Timed,
    ToolCallFinished,
    ToolCallProgress,
    ToolCallStarted,
)
from deadlinemesh.orchestrator.memory import COPIES, Memory
from deadlinemesh.orchestrator.ports import ModelPort, ToolPort
from deadlinemesh.orchestrator.runs import GROWS_BY, AgentRun, Runs
from deadlinemesh.orchestrator.shortening import Bounds
from deadlinemesh.orchestrator.upstreams import Upstreams
from deadlinemesh.policy import GoOver, Past, Policy, Tenant
from deadlinemesh.telemetry import Telemetry
from deadlinemesh.transport.crowded import Crowded, unless_crowded
from deadlinemesh.transport.messages import (
    add_messages,
    hop_spend,
    messages_from_wire,
    microseconds,
    phase_spends,
    phase_to_wire,
    tool_call_to_wire,
)
from deadlinemesh.v1 import common_pb2, llm_proxy_pb2, orchestrator_pb2, orchestrator_pb2_grpc

__all__ = ["OrchestratorServicer"]

GRANTED_US = "deadline-granted-us"
"""Initial metadata: the time granted, in microseconds from the call's arrival."""
RUN_ID = "mesh-run-id"
"""Initial metadata: the run's name."""

_LONGEST_REQUEST_ID = 128
_MOST_ITEMS = 4096
"""Messages of a history, calls in them, tools: each costs the event loop some microseconds, whatever its bytes."""
_MOST_PARTS = 8 * _MOST_ITEMS
"""Fields of a request, of its messages and so on: as many messages and calls as there may be, with all that they have."""
_PARTS = {
    orchestrator_pb2.RunRequest.HISTORY_FIELD_NUMBER: {common_pb2.Message.TOOL_CALLS_FIELD_NUMBER: None},
}
_LARGEST_QUESTION = 64 * 1024
"""Bytes of a request that names a run or a page of them."""
_SMALL_REPLY = 16 * 1024
"""Bytes of a reply that is not worth counting."""
_PAGE, _LARGEST_PAGE = 20, 100
_PAGE_OVERHEAD = 32
"""Bytes of a page, and of each run in it, that are not the run's own, with room to spare."""
_PAGE_BYTES = 1024 * 1024
"""A page's size, where messages may be larger: it is built in one turn of the event loop."""
_PAGE_TOKEN = re.compile(r"[0-9]{1,18}", re.ASCII)


class OrchestratorServicer(orchestrator_pb2_grpc.OrchestratorServiceServicer):
    """Serves runs. The edge gate has authenticated the tenant and granted the budget before any of this is called."""

    def __init__(
        self,
        policy: Policy,
        background: Background,
        models: ModelPort,
        tools: ToolPort,
        telemetry: Telemetry,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._places = Bulkhead("runs", policy.admission.runs, clock=clock, on_wait=telemetry.record)
        self._memory = Memory(policy, telemetry, HOP)
        self._policy = policy
        self._past: Past[Policy] = Past(clock)
        upstreams = Upstreams(telemetry, HOP)
        self._catalog = Catalog(tools, upstreams)
        self._runs = Runs(background, self._places, models, tools, policy.limits, telemetry, upstreams, self._memory)
        self.prepared(policy)()

    def prepared(self, policy: Policy) -> GoOver:
        """Begin runs to come by `policy`; those at work keep what they were begun with."""
        return partial(self._use, policy)

    def _use(self, policy: Policy) -> None:
        self._past.keep(self._policy, self._policy, policy)
        self._policy = policy
        self._memory.use(policy)
        self._runs.use(policy.limits)
        self._places.resize(policy.admission.runs, shares=policy.shares(), most_waiting=policy.admission.most_waiting)

    def register(self, server: Any) -> None:
        """Serve every method, as the generated `add_…_to_server` does; requests of too many parts are refused unparsed."""
        registrar: Any = _Registrar(server)
        orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server(self, registrar)

    def flush(self) -> None:
        """Tell now of every run that has ended: what of that could wait is done."""
        self._runs.flush()

    async def Run(
        self, request: orchestrator_pb2.RunRequest | Crowded, context: Any
    ) -> AsyncIterator[orchestrator_pb2.RunResponse]:
        grant = current_grant()
        if isinstance(request, Crowded):
            grant.charge(request.size)
            raise request
        size = request.ByteSize()
        grant.charge(size)
        with self._memory.request(grant.tenant, size):
            history = await self._checked(request)
            run = self._runs.known(grant.tenant.tenant_id, request.request_id) if request.request_id else None
            attached = run is not None
            policy = self._granting(grant.tenant)
            if run is None:
                held = self._memory.take(grant.tenant.tenant_id, (COPIES - 1) * size + GROWS_BY)
                prepare = partial(self._prepare, policy, request, history)
                run = self._runs.start(grant, request.request_id, prepare, held)
                del prepare
            del request, history
            with run.watched():
                granted_us = str(microseconds(run.grant.granted))
                await context.send_initial_metadata(((GRANTED_US, granted_us), (RUN_ID, run.run_id)))
                async with aclosing(run.told()) as events:
                    async for event in events:
                        yield _response(run, event, attached)

    def _granting(self, tenant: Tenant) -> Policy:
        """The policy by which `tenant` was granted its run: since then there may have come another, in which it has less."""
        for policy in chain((self._policy,), self._past):
            if tenant.tenant_id in policy.tenants and policy.models.keys() >= set(tenant.models):
                return policy
        raise UpstreamFailed("the policy is changing: try again", hop=HOP)

    async def GetRun(self, request: orchestrator_pb2.GetRunRequest, context: Any) -> orchestrator_pb2.GetRunResponse:
        _check_size(request)
        run = self._runs.get(current_grant().tenant.tenant_id, request.run_id)
        history, most = run.history, self._policy.limits.message_bytes
        size = sum(map(_length, history))
        if size <= most:
            self._hold_reply(size, context)
            reply = orchestrator_pb2.GetRunResponse(run=_info(run))
            await add_messages(reply.messages, history)
            size = reply.ByteSize()
            if size <= most:
                return reply
        raise TooLarge(
            f"with its history {run.run_id} has {size} bytes or more, and a message {most}; ListRuns has the rest"
        )

    async def ListRuns(
        self, request: orchestrator_pb2.ListRunsRequest, context: Any
    ) -> orchestrator_pb2.ListRunsResponse:
        _check_size(request)
        size, before = _page(request)
        wanted = {
            orchestrator_pb2.RUN_STATE_UNSPECIFIED: (True, False),
            orchestrator_pb2.RUN_STATE_RUNNING: (False,),
            orchestrator_pb2.RUN_STATE_FINISHED: (True,),
        }[request.state]
        runs = (
            run
            for run in self._runs.of(current_grant().tenant.tenant_id)
            if (before is None or run.number < before) and run.over in wanted
        )
        last = 0
        page, room = orchestrator_pb2.ListRunsResponse(), min(self._policy.limits.message_bytes, _PAGE_BYTES)
        room -= _PAGE_OVERHEAD
        for run in runs:
            # An answer that alone does not fit need not become a message first.
            if page.runs and (len(page.runs) == size or _answer_length(run) > room):
                page.next_page_token = str(last)
                break
            info = _info(run)
            room -= info.ByteSize() + _PAGE_OVERHEAD
            if room < 0 and page.runs:
                page.next_page_token = str(last)
                break
            page.runs.append(info)
            last = run.number
        self._hold_reply(page.ByteSize(), context)
        return page

    async def CancelRun(
        self, request: orchestrator_pb2.CancelRunRequest, context: Any
    ) -> orchestrator_pb2.CancelRunResponse:
        _check_size(request)
        run = self._runs.get(current_grant().tenant.tenant_id, request.run_id)
        run.stop(Cause.CLIENT_CANCELLED)
        await run.ended()
        reply = orchestrator_pb2.CancelRunResponse(run=_info(run))
        self._hold_reply(reply.ByteSize(), context)
        return reply

    def _hold_reply(self, size: int, context: Any) -> None:
        """Count a large reply until its call is over: it may be read slowly. Raises Shed where there is no room for it."""
        if size > _SMALL_REPLY:
            current_grant().charge(size)
            held = self._memory.take(current_grant().tenant.tenant_id, COPIES * size)
            context.add_done_callback(lambda _: held.release())

    async def _checked(self, request: orchestrator_pb2.RunRequest) -> list[Message]:
        """The history of `request`. Raises InvalidRequest where that, or anything else of the request, is not right."""
        found = Violations()
        _check(request, found)
        history: list[Message] = []
        entries = request.history
        if len(entries) > _MOST_ITEMS or sum(len(message.tool_calls) for message in entries) > _MOST_ITEMS:
            found.add("history", f"must have at most {_MOST_ITEMS} messages, and as many tool calls")
        else:
            history = await messages_from_wire(entries)
            for violation in history_violations(history, "history", self._policy.limits.longest_arguments):
                found.add(violation.field, violation.description)
        if found:
            raise InvalidRequest(found.told())
        return history

    async def _prepare(
        self, policy: Policy, request: orchestrator_pb2.RunRequest, history: Sequence[Message], run: AgentRun
    ) -> Assignment:
        tenant = run.grant.tenant
        if request.model and request.model not in tenant.models:
            raise NotFound(
                [Violation("model", f"{shown(request.model)} is unknown or not yours: {choices(tenant.models)}")]
            )
        messages = list(history)
        if request.instructions and messages and messages[0].role is Role.SYSTEM:
            del messages[0]  # an earlier run's, as a run's messages begin with its instructions
        instructions = request.instructions or policy.instructions
        if instructions and (request.instructions or not any(message.role is Role.SYSTEM for message in messages)):
            messages.insert(0, Message(Role.SYSTEM, instructions))
        messages.append(Message(Role.USER, request.prompt))
        model = request.model or tenant.models[0]
        retries = tenant.tier_policy.tool_retries
        listed = await self._catalog.listed(retries, partial(run.ledger.phase, Phase.RETRY_BACKOFF))
        return Assignment(
            model=model,
            results=Bounds(policy.models[model].longest_result, policy.shortener_of(tenant.tenant_id, model)),
            fallbacks=policy.fallbacks_of(tenant.tenant_id, model),
            messages=tuple(messages),
            tools=_chosen(request.tools, listed),
            max_iterations=_max_iterations(request, run.grant),
            max_output_tokens=request.limits.max_output_tokens,
            tool_retries=retries,
            most_calls=policy.limits.tool_calls_per_turn,
            longest_arguments=policy.limits.longest_arguments,
        )


class _Registrar:
    """Registers handlers at a server, with a bound on the parts of each Run's request."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Nothing: `add_registered_method_handlers` brings the same."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        run = handlers["Run"]
        parse = unless_crowded(run.request_deserializer, "history, tools", _PARTS, _MOST_PARTS)
        bounded = {**handlers, "Run": run._replace(request_deserializer=parse)}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, bounded),))
        self._server.add_registered_method_handlers(service, bounded)


def _check_size(request: Any) -> None:
    """Raises TooLarge for a request that is to name a run or a page, and is far larger."""
    size = request.ByteSize()
    if size > _LARGEST_QUESTION:
        raise TooLarge(f"the request has {size} bytes, and at most {_LARGEST_QUESTION} are needed to ask this")


def _check(request: orchestrator_pb2.RunRequest, found: Violations) -> None:
    if not request.prompt.strip():
        found.add("prompt", "must not be empty: say what the agent should do")
    if len(request.request_id) > _LONGEST_REQUEST_ID:
        found.add("request_id", f"must be at most {_LONGEST_REQUEST_ID} characters")
    for limit in ("max_iterations", "max_output_tokens"):
        if getattr(request.limits, limit) < 0:
            found.add(f"limits.{limit}", "must be positive, or 0 to leave it to policy")
    if len(request.tools) > _MOST_ITEMS:
        found.add("tools", f"must be at most {_MOST_ITEMS}")


def _chosen(names: Sequence[str], listed: Listed) -> tuple[ToolSpec, ...]:
    if not names:
        return listed.specs
    offered = {spec.name: spec for spec in listed.specs}
    known = choices(sorted(offered))
    unknown = Violations()
    for index, name in enumerate(names):
        if name not in offered:
            unknown.add(f"tools[{index}]", f"{shown(name)} is unknown or not yours: {known}")
    if unknown and listed.now:  # else it cannot be told
        raise NotFound(unknown.told())
    return tuple(offered[name] for name in dict.fromkeys(names) if name in offered)


def _max_iterations(request: orchestrator_pb2.RunRequest, grant: Grant) -> int:
    allowed = grant.tenant.tier_policy.iterations
    return min(request.limits.max_iterations or allowed, allowed)


def _page(request: orchestrator_pb2.ListRunsRequest) -> tuple[int, int | None]:
    found: list[Violation] = []
    if not 0 <= request.page_size <= _LARGEST_PAGE:
        found.append(Violation("page_size", f"must be from 1 to {_LARGEST_PAGE}, or 0 for {_PAGE}"))
    if request.page_token and not _PAGE_TOKEN.fullmatch(request.page_token):
        found.append(Violation("page_token", "must be the next_page_token of an earlier page"))
    if request.state not in orchestrator_pb2.RunState.values():
        found.append(Violation("state", f"must be {choices(orchestrator_pb2.RunState.keys())}"))
    if found:
        raise InvalidRequest(found)
    return request.page_size or _PAGE, int(request.page_token) if request.page_token else None


def _grant(grant: Grant) -> orchestrator_pb2.Grant:
    return orchestrator_pb2.Grant(
        tenant_id=grant.tenant.tenant_id,
        tier=grant.tenant.tier,
        granted_us=microseconds(grant.granted),
        reserve_us=microseconds(grant.reserve),
        requested_us=microseconds(grant.requested or 0.0),
        clipped=grant.clipped,
        max_iterations=grant.tenant.tier_policy.iterations,
    )


def _info(run: AgentRun) -> orchestrator_pb2.RunInfo:
    created = Timestamp()
    created.FromMicroseconds(microseconds(run.created_at))
    return orchestrator_pb2.RunInfo(
        run_id=run.run_id,
        request_id=run.request_id,
        state=orchestrator_pb2.RUN_STATE_FINISHED if run.over else orchestrator_pb2.RUN_STATE_RUNNING,
        grant=_grant(run.grant),
        trace_id=run.context.trace_id,
        model=run.model,
        create_time=created,
        finished=None if run.finished is None else _finished(run.finished),
    )


def _length(message: Message) -> int:
    """Characters of its texts: no more than the bytes that they take in a message."""
    return len(message.content) + sum(len(call.arguments_json) for call in message.tool_calls)


def _answer_length(run: AgentRun) -> int:
    return 0 if run.finished is None else len(run.finished.answer)


def _response(run: AgentRun, timed: Timed, attached: bool) -> orchestrator_pb2.RunResponse:
    return orchestrator_pb2.RunResponse(elapsed_us=microseconds(timed.elapsed), **_event(run, timed.event, attached))


def _event(run: AgentRun, event: RunEvent, attached: bool) -> dict[str, Any]:
    match event:
        case TextDelta():
            return {"text": llm_proxy_pb2.TextDelta(text=event.text)}
        case PhaseChanged():
            return {
                "phase_changed": orchestrator_pb2.PhaseChanged(
                    phase=phase_to_wire(event.phase),
                    iteration=event.iteration,
                    remaining_us=microseconds(event.remaining),
                    spent=phase_spends(event.spent),
                )
            }
        case ToolCallStarted():
            return {
                "tool_call_started": orchestrator_pb2.ToolCallStarted(
                    call=tool_call_to_wire(event.call),
                    iteration=event.iteration,
                    remaining_us=microseconds(event.remaining),
                )
            }
        case ToolCallProgress():
            return {
                "tool_call_progress": orchestrator_pb2.ToolCallProgress(
                    call_id=event.call_id, message=event.message, fraction=event.fraction
                )
            }
        case ToolCallFinished():
            spend = event.spend
            return {
                "tool_call_finished": orchestrator_pb2.ToolCallFinished(
                    call_id=event.call.id,
                    name=event.call.name,
                    status=getattr(common_pb2, f"TOOL_STATUS_{event.status.name}"),
                    content=event.content,
                    elapsed_us=microseconds(event.elapsed),
                    spend=None if spend is None else hop_spend(spend.hop, spend.elapsed, spend.phases),
                )
            }
        case RunStarted():
            return {
                "started": orchestrator_pb2.RunStarted(
                    run_id=run.run_id,
                    request_id=run.request_id,
                    grant=_grant(run.grant),
                    trace_id=run.context.trace_id,
                    model=run.model,
                    attached=attached,
                )
            }
        case RunFinished():
            return {"finished": _finished(event)}


def _finished(event: RunFinished) -> orchestrator_pb2.RunFinished:
    usage = event.usage
    return orchestrator_pb2.RunFinished(
        outcome=getattr(orchestrator_pb2, f"OUTCOME_{event.outcome.name}"),
        cause=common_pb2.CAUSE_UNSPECIFIED if event.cause is None else getattr(common_pb2, f"CAUSE_{event.cause.name}"),
        detail=event.detail,
        answer=event.answer,
        partial=event.partial,
        ledger=common_pb2.Ledger(
            granted_us=microseconds(event.granted),
            elapsed_us=microseconds(event.elapsed),
            phases=phase_spends(event.phases),
            unattributed_us=microseconds(event.unattributed),
        ),
        usage=common_pb2.Usage(
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            model_calls=usage.model_calls,
            tool_calls=usage.tool_calls,
        ),
        iterations=event.iterations,
    )
