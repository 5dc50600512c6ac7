"""The orchestrator behind gRPC: maps messages to the vocabulary and back."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from deadlinemesh.errors import InvalidRequest, TooLarge, Violation, Violations, choices
from deadlinemesh.identity.grants import Grant
from deadlinemesh.orchestrator.events import (
    PhaseChanged,
    RunEvent,
    RunFinished,
    RunStarted,
    Timed,
    ToolCallFinished,
    ToolCallProgress,
    ToolCallStarted,
)
from deadlinemesh.orchestrator.planning import MAX_ITEMS, RunOrder
from deadlinemesh.orchestrator.run import AgentRun
from deadlinemesh.orchestrator.service import Orchestrator
from deadlinemesh.transport.codec import (
    add_messages,
    messages_from_wire,
    microseconds,
    phase_to_wire,
    phases_to_wire,
    spend_to_wire,
    tool_call_to_wire,
)
from deadlinemesh.transport.crowded import Crowded, unless_crowded
from deadlinemesh.v1 import common_pb2, llm_proxy_pb2, orchestrator_pb2, orchestrator_pb2_grpc
from deadlinemesh.vocabulary import Message, TextDelta

__all__ = ["OrchestratorServicer"]

GRANTED_US = "deadline-granted-us"
"""Key of initial metadata: the granted time, in microseconds from the call's arrival."""
RUN_ID = "mesh-run-id"
"""Key of initial metadata: the run's id."""

_MOST_PARTS = 8 * MAX_ITEMS
"""Fields of a request, of its messages and of their calls together. Enough for MAX_ITEMS messages
and calls with all their fields."""
_PARTS = {
    orchestrator_pb2.RunRequest.HISTORY_FIELD_NUMBER: {common_pb2.Message.TOOL_CALLS_FIELD_NUMBER: None},
}
_LARGEST_QUESTION = 64 * 1024
"""Bytes that a request for a run or a page of runs may have."""
_SMALL_REPLY = 16 * 1024
"""Bytes of the largest reply that is not charged."""
_PAGE, _LARGEST_PAGE = 20, 100
_PAGE_OVERHEAD = 32
"""Bytes that a page has besides its runs, and besides each run's own. Rounded up generously."""
_PAGE_BYTES = 1024 * 1024
"""Bytes of a page at most, even if messages may be larger. It is built in one turn of the event
loop."""
_WANTED = {
    orchestrator_pb2.RUN_STATE_UNSPECIFIED: (True, False),
    orchestrator_pb2.RUN_STATE_RUNNING: (False,),
    orchestrator_pb2.RUN_STATE_FINISHED: (True,),
}
_PAGE_TOKEN = re.compile(r"[0-9]{1,18}", re.ASCII)


class OrchestratorServicer(orchestrator_pb2_grpc.OrchestratorServiceServicer):
    """Serves an `Orchestrator` over gRPC."""

    def __init__(self, service: Orchestrator) -> None:
        self.service = service

    def register(self, server: Any) -> None:
        """Add every method to `server`. A Run request with too many fields is refused unparsed."""
        registrar: Any = _Registrar(server)
        orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server(self, registrar)

    async def Run(
        self, request: orchestrator_pb2.RunRequest | Crowded, context: Any
    ) -> AsyncIterator[orchestrator_pb2.RunResponse]:
        grant = _grant_of(context)
        if isinstance(request, Crowded):
            grant.charge(request.size)
            raise request
        size = request.ByteSize()
        with self.service.hold_request(grant, size):
            found = Violations()
            run, attached = self.service.start(grant, await _order(request, found), size, found)
            del request
            with run.watched():
                granted_us = str(microseconds(run.grant.granted))
                await context.send_initial_metadata(((GRANTED_US, granted_us), (RUN_ID, run.run_id)))
                async with aclosing(run.follow()) as events:
                    async for event in events:
                        yield _response(run, event, attached)

    async def GetRun(self, request: orchestrator_pb2.GetRunRequest, context: Any) -> orchestrator_pb2.GetRunResponse:
        _check_size(request)
        run = self.service.get(_tenant_id(context), request.run_id)
        history, most = run.history, self.service.message_bytes
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
        wanted = _WANTED[request.state]
        runs = (
            run
            for run in self.service.runs(_tenant_id(context))
            if (before is None or run.number < before) and run.over in wanted
        )
        last = 0
        page, room = orchestrator_pb2.ListRunsResponse(), min(self.service.message_bytes, _PAGE_BYTES)
        room -= _PAGE_OVERHEAD
        for run in runs:
            # The answer's length alone may show that the run does not fit. Then it is not mapped.
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
        run = await self.service.cancel(_tenant_id(context), request.run_id)
        reply = orchestrator_pb2.CancelRunResponse(run=_info(run))
        self._hold_reply(reply.ByteSize(), context)
        return reply

    def _hold_reply(self, size: int, context: Any) -> None:
        """Charge a large reply until its call is over."""
        if size > _SMALL_REPLY:
            held = self.service.hold_reply(_grant_of(context), size)
            context.add_done_callback(lambda _: held.release())


class _Registrar:
    """Registers handlers at a server, with a bound on the fields of each Run request."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Do nothing: `add_registered_method_handlers` adds the same handlers."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        run = handlers["Run"]
        parse = unless_crowded(run.request_deserializer, "history, tools", _PARTS, _MOST_PARTS)
        bounded = {**handlers, "Run": run._replace(request_deserializer=parse)}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, bounded),))
        self._server.add_registered_method_handlers(service, bounded)


def _check_size(request: Any) -> None:
    """Raise TooLarge if a request for a run or a page is far larger than such a request needs."""
    size = request.ByteSize()
    if size > _LARGEST_QUESTION:
        raise TooLarge(f"the request has {size} bytes, and at most {_LARGEST_QUESTION} are needed to ask this")


def _grant_of(context: Any) -> Grant:
    """The grant of the call that a handler serves."""
    grant: Grant = context.admitted.grant
    return grant


def _tenant_id(context: Any) -> str:
    return _grant_of(context).tenant.tenant_id


async def _order(request: orchestrator_pb2.RunRequest, found: Violations) -> RunOrder:
    """The order in `request`. A history with too many items is left out and noted in `found`."""
    entries = request.history
    if len(entries) > MAX_ITEMS or sum(len(message.tool_calls) for message in entries) > MAX_ITEMS:
        found.add("history", f"must have at most {MAX_ITEMS} messages, and as many tool calls")
        history: list[Message] = []
    else:
        history = await messages_from_wire(entries)
    return RunOrder(
        prompt=request.prompt,
        request_id=request.request_id,
        instructions=request.instructions,
        model=request.model,
        tools=tuple(request.tools),
        history=tuple(history),
        max_iterations=request.limits.max_iterations,
        max_output_tokens=request.limits.max_output_tokens,
    )


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
    """Characters of the message's texts. They take at least as many bytes on the wire."""
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
                    spent=phases_to_wire(event.spent),
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
                    spend=None if spend is None else spend_to_wire(spend),
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
            phases=phases_to_wire(event.phases),
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
