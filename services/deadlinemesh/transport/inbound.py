"""Every call into a hop: read the wire, set the context, run the handler in its scope, map errors to status. Nowhere else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from functools import partial
from hmac import compare_digest
from inspect import isasyncgenfunction
from typing import TYPE_CHECKING, Any

import grpc
from opentelemetry import trace

from deadlinemesh.deadline import SYSTEM_CLOCK, Background, Clock, DeadlineContext, Orphan, Scope, Scopes
from deadlinemesh.deadline.lag import Lag, LagWatch
from deadlinemesh.deadline.scope import outside_any_scope, own_tasks
from deadlinemesh.errors import (
    Draining,
    InternalFailure,
    MeshError,
    NoDeadline,
    Shed,
    Stopped,
    Unauthenticated,
)
from deadlinemesh.telemetry import (
    CallEnded,
    CallRefused,
    CallStarted,
    LoopLagged,
    MalformedRemaining,
    OrphanReported,
    Telemetry,
)
from deadlinemesh.transport import wire
from deadlinemesh.transport.answer import Answer
from deadlinemesh.transport.backlog import Backlog, Backlogs
from deadlinemesh.transport.spans import ServerSpan, ServerSpans
from deadlinemesh.transport.status import code_of, error_from, status_of

__all__ = ["Arrival", "DeadlineInterceptor", "Gate", "MeshGate"]

_LOG = logging.getLogger("deadlinemesh.transport")

Handler = Callable[[Any, Any], Any]
if TYPE_CHECKING:
    MethodHandler = grpc.RpcMethodHandler[Any, Any]

TOO_LATE = 0.5
"""The part of its time that a call may have spent before it was taken up. gRPC queues calls in the order of their arrival, unseen
by any admission: behind more than can be taken up, each would be begun with next to nothing left. Refused in time, those after it
fare better, and their callers hear of the load."""

MOST_REMEMBERED = 4096
"""Identities of peers that a gate remembers."""

LONGEST_REMEMBERED = 512
"""Characters of one."""

# Health checks and reflection belong to no tenant and need no deadline.
_OPEN_SERVICES = ("/grpc.health.", "/grpc.reflection.")


class Arrival:
    """A call at the door: what it says of itself, none of it believed yet."""

    __slots__ = (
        "at",
        "backlog",
        "exact",
        "identity",
        "late",
        "malformed",
        "metadata",
        "method",
        "native_remaining",
        "remaining",
    )

    def __init__(self, method: str, metadata: wire.Pairs, at: float, native_remaining: float | None) -> None:
        self.method = method
        self.metadata = metadata
        self.at = at
        """The instant of arrival."""
        self.native_remaining = native_remaining
        """What `grpc-timeout` left at that instant, in seconds; None without one."""
        exact, self.identity, self.malformed = wire.decode(metadata)
        self.exact = exact
        """Seconds left by `deadline-remaining-us`, at its sending; None where it was not sent or is malformed."""
        if exact is None:
            exact = native_remaining
        self.remaining = exact
        """Seconds left by the tighter of the two deadlines; None where the caller sent neither."""
        self.late = 0.0
        """Seconds from its sending to its being taken up here; 0 if unknown. As much to be believed as its caller."""
        if exact is not None and native_remaining is not None and native_remaining < exact:
            self.remaining, self.late = native_remaining, exact - native_remaining
        self.backlog: Backlog | None = None
        """The calls that were taken up with it; a gate that believes the caller says so."""

    def header(self, name: str) -> str:
        """The last value of this name; empty if there is none, or it is not text."""
        return next((value for key, value in reversed(self.metadata) if key == name and isinstance(value, str)), "")


# The headers of the call whose task this is, and the instant of its arrival. Asking its context would decode every header again,
# and when the handler begins, the request has been awaited as well.
_ARRIVED: ContextVar[tuple[wire.Pairs, float]] = ContextVar("arrived")

Gate = Callable[[Arrival], DeadlineContext]
"""Decides who is calling and until when. Raises the error to refuse with."""


class MeshGate:
    """The door of an inner hop: believes peers that know the mesh's token, and refuses a call without a deadline, or one that has
    spent half of its time before it was taken up.
    """

    def __init__(self, hop: str, mesh_token: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self._hop = hop
        self._token = wire.checked_token(mesh_token).encode()
        self._clock = clock
        self._backlogs = Backlogs()
        self._peers: dict[str, wire.Identity] = {}
        """Whom lately believed identities name: a run's calls all carry the same."""

    def __call__(self, arrival: Arrival) -> DeadlineContext:
        caller = self._peers.get(arrival.identity) or self._introduced(arrival.identity)
        if arrival.remaining is None:
            raise NoDeadline(f"{self._hop} takes no call without a deadline: set the call's timeout", hop=self._hop)
        if arrival.late > TOO_LATE * (arrival.late + arrival.remaining):
            raise Shed(
                f"{self._hop} is behind: this call waited {arrival.late * 1000:.0f} ms to be taken up",
                retry_after=arrival.late,
                hop=self._hop,
                phase="admission",
            )
        at = arrival.at
        arrival.backlog = self._backlogs.join(at, arrival.late)
        return DeadlineContext(
            caller.tenant_id,
            at + arrival.remaining,
            caller.tier,
            caller.trace_id or wire.new_trace_id(),
            caller.run_id,
            at,
            self._clock,
        )

    def _introduced(self, header: str) -> wire.Identity:
        identity = wire.identity_of(header)
        if not compare_digest(identity.mesh_token, self._token):
            raise Unauthenticated(
                f"{self._hop} is internal: `{wire.IDENTITY}` must begin with the mesh's token; clients call the orchestrator",
                hop=self._hop,
            )
        if len(header) <= LONGEST_REMEMBERED:
            if len(self._peers) >= MOST_REMEMBERED:
                self._peers.clear()
            self._peers[header] = identity
        return identity


class DeadlineInterceptor(grpc.aio.ServerInterceptor):
    """The one server interceptor of a hop. It must be the last of a server's, next to the handlers.

    `scopes` are the calls being served; `background` spawns work that outlives them. After `drain`, new calls are refused.
    """

    def __init__(
        self,
        hop: str,
        gate: Gate,
        *,
        clock: Clock = SYSTEM_CLOCK,
        telemetry: Telemetry | None = None,
        tracer: trace.Tracer | None = None,
    ) -> None:
        self.hop = hop
        self.scopes = Scopes(hop, self._report)
        self.background = Background(self.scopes)
        self._gate = gate
        self._clock = clock
        self._telemetry = telemetry or Telemetry()
        self._recording = bool(self._telemetry)
        self._spans = None if tracer is None else ServerSpans(tracer)
        self._wrapped: dict[str, MethodHandler] = {}
        self._answers: set[asyncio.Task[None]] = set()
        self._unanswered = 0
        self._all_answered: asyncio.Event | None = None
        self._draining = False

    async def answered(self) -> None:
        """Return once no call is left whose status is still to be sent."""
        while self._unanswered:
            self._all_answered = asyncio.Event()
            await self._all_answered.wait()

    def watch_lag(self) -> LagWatch:
        """Record from now on, until it is stopped, when the running loop stands still, and for whom."""
        return LagWatch(self.scopes, self._lagged)

    def drain(self) -> None:
        """Refuse every new call from now on."""
        self._draining = True

    def flush(self) -> None:
        """Tell now of every call that has ended: what of that could wait is done."""
        if self._spans is not None:
            self._spans.flush()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[MethodHandler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> MethodHandler | None:
        method: str = handler_call_details.method
        _ARRIVED.set((handler_call_details.invocation_metadata, self._clock.monotonic()))
        wrapped = self._wrapped.get(method)
        if wrapped is not None:
            return wrapped
        own_tasks(asyncio.get_running_loop())
        handler = await continuation(handler_call_details)
        if handler is None or method.startswith(_OPEN_SERVICES):
            return handler
        wrapped = self._wrapped[method] = self._wrap(method, handler)
        return wrapped

    def _wrap(self, method: str, handler: MethodHandler) -> MethodHandler:
        kind = ("stream" if handler.request_streaming else "unary", "stream" if handler.response_streaming else "unary")
        served = _Method(self, method, getattr(handler, "_".join(kind)))
        factory = getattr(grpc, "_".join(kind) + "_rpc_method_handler")
        wrapped: MethodHandler = factory(served.serve, handler.request_deserializer, handler.response_serializer)
        return wrapped

    def _report(self, orphan: Orphan) -> None:
        owner = orphan.context
        self._telemetry.record(OrphanReported(orphan.hop, owner.tenant_id, owner.run_id, orphan.task, orphan.age))

    def _lagged(self, lag: Lag) -> None:
        tenant_id, run_id = ("", "") if lag.context is None else (lag.context.tenant_id, lag.context.run_id)
        self._telemetry.record(LoopLagged(self.hop, tenant_id, run_id, lag.seconds, lag.function))


class _Method:
    """One method of a hop as grpc.aio is to call it: the way of every call, from its headers to its status."""

    def __init__(self, hop: DeadlineInterceptor, name: str, handler: Handler) -> None:
        self._hop = hop
        self._name = name
        self._handler = handler
        self._yields = isasyncgenfunction(handler)
        """Whether it yields its responses; a stream's handler may also write them itself."""

    async def serve(self, request: Any, context: Any) -> Any:
        # Everything that a response passes on its way out is in this one frame: each more would cost every message.
        hop = self._hop
        metadata, at = _ARRIVED.get()
        answer = Answer(context)
        deadline: DeadlineContext | None = None
        scope: Scope | None = None
        error: MeshError | None = None
        result: Any = None
        span = None if hop._spans is None else hop._spans.begin(self._name, metadata, context.peer())
        hop._unanswered += 1
        try:
            try:
                if hop._draining:
                    raise Draining(f"{hop.hop} is shutting down; another instance will serve you", hop=hop.hop)
                native = context.time_remaining()
                if native is not None:  # at the arrival: the request may have taken a while to follow its headers
                    native += hop._clock.monotonic() - at
                arrival = Arrival(self._name, metadata, at, native)
                if arrival.malformed is not None:
                    hop._telemetry.record(MalformedRemaining(hop.hop, self._name, arrival.malformed))
                deadline = hop._gate(arrival)
                if span is not None:
                    deadline = span.describe(deadline)
                if hop._recording:
                    hop._telemetry.record(
                        CallStarted(hop.hop, self._name, deadline.run_id, at, deadline.absolute_deadline)
                    )
                scope = hop.scopes.open(deadline)
                scope.on_overdue = partial(self._answer_for, answer)
                scope.backlog = arrival.backlog
                async with scope:
                    if self._yields:
                        responses = self._handler(request, answer)
                        write: Callable[[Any], Awaitable[None]] = answer.write
                        try:
                            async for response in responses:
                                await write(response)
                                write = context.write
                        except BaseException:
                            await responses.aclose()
                            raise
                    else:
                        result = await self._handler(request, answer)
            except BaseException as raised:
                error = self._error_of(raised, scope)
            finally:
                if span is not None or hop._recording:
                    self._conclude(context, at, deadline, error, span)
            if error is not None:
                await self._refuse(error, scope, answer)
            return result
        finally:
            error = None  # its traceback has this frame: they would keep one another until a collection of cycles
            hop._unanswered -= 1
            if not hop._unanswered and hop._all_answered is not None:
                hop._all_answered.set()

    def _error_of(self, raised: BaseException, scope: Scope | None) -> MeshError:
        """What the client is to be told. Raises `raised` again if that is nothing."""
        if isinstance(raised, MeshError):
            return raised
        if isinstance(raised, grpc.aio.AioRpcError):
            return error_from(raised, "an upstream")
        if isinstance(raised, grpc.aio.AbortError):
            raise raised  # the handler wrote its own status
        if isinstance(raised, (grpc.aio.InternalError, asyncio.CancelledError)) and scope is not None:
            # An answer could not be written, or the call was cancelled beside its scope: nobody is there any more.
            return scope.left()
        if not isinstance(raised, Exception):
            raise raised
        _LOG.error("%s%s failed", self._hop.hop, self._name, exc_info=raised)
        return InternalFailure(f"{self._hop.hop} failed; its log says why", hop=self._hop.hop)

    def _conclude(
        self,
        context: Any,
        arrived_at: float,
        deadline: DeadlineContext | None,
        error: MeshError | None,
        span: ServerSpan | None,
    ) -> None:
        hop = self._hop
        code = _written(context) if error is None else code_of(error)
        cause = error.cause.value if isinstance(error, Stopped) else ""
        if span is not None:
            span.end(code, cause, "" if error is None else str(error))
        if not hop._recording:
            return
        if deadline is None:
            reason = "" if error is None else error.reason
            hop._telemetry.record(
                CallRefused(hop.hop, self._name, arrived_at, hop._clock.monotonic(), code.name, reason)
            )
        else:
            hop._telemetry.record(
                CallEnded(
                    hop=hop.hop,
                    method=self._name,
                    tenant_id=deadline.tenant_id,
                    tier=deadline.tier,
                    run_id=deadline.run_id,
                    started_at=deadline.started_at,
                    deadline_at=deadline.absolute_deadline,
                    ended_at=hop._clock.monotonic(),
                    code=code.name,
                    cause=cause,
                )
            )

    async def _refuse(self, error: MeshError, scope: Scope | None, answer: Answer) -> None:
        """End the call with the status of `error`."""
        if scope is not None and scope.caller_left:
            raise asyncio.CancelledError from error  # nobody is there to read a status: grpc.aio lets the call go
        if not answer.done():
            error.hop = error.hop or self._hop.hop
            await answer.end_with(status_of(error, None if scope is None else scope.context))

    def _answer_for(self, answer: Answer, scope: Scope) -> None:
        """Send the status of a call whose handler will not end: its client must not wait for that."""
        if not answer.done():
            answers = self._hop._answers
            ending = answer.end_with(status_of(scope.stopped(), scope.context))
            task = asyncio.get_running_loop().create_task(ending, context=outside_any_scope())
            answers.add(task)
            task.add_done_callback(answers.discard)


def _written(context: Any) -> grpc.StatusCode:
    """The code that the handler itself has given its call: by `abort`, by `set_code`, or by simply returning."""
    code = context.code()
    if code is None:
        return grpc.StatusCode.OK
    return code if isinstance(code, grpc.StatusCode) else grpc.StatusCode.UNKNOWN
