"""The path of each call into a hop, and the only one.

It reads the headers, sets the context, runs the handler in its scope, and maps errors to statuses.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Awaitable, Callable, Container
from contextvars import ContextVar
from functools import partial
from inspect import isasyncgenfunction
from itertools import chain
from math import inf
from typing import TYPE_CHECKING, Any

import grpc
from opentelemetry import trace

from deadlinemesh.deadline import SYSTEM_CLOCK, Background, Clock, DeadlineContext, Orphan, Scope, Scopes
from deadlinemesh.deadline.lowlevel import Lag, LagWatch, outside_any_scope, own_tasks
from deadlinemesh.errors import (
    Draining,
    InternalFailure,
    InvalidRequest,
    MeshError,
    Stopped,
    Unauthenticated,
    Violation,
)
from deadlinemesh.telemetry import (
    CallEnded,
    CallRefused,
    CallStarted,
    ConnectionClosed,
    LoopLagged,
    MalformedRemaining,
    OrphanReported,
    Telemetry,
)
from deadlinemesh.transport import wire
from deadlinemesh.transport.connections import plain
from deadlinemesh.transport.gates import Arrival, Gate
from deadlinemesh.transport.guarded_context import GuardedContext
from deadlinemesh.transport.open_calls import OpenCalls, OpenMethod
from deadlinemesh.transport.peers import REFUSED_CALL, Peers
from deadlinemesh.transport.requests import Readings, late_request, parser_of, received
from deadlinemesh.transport.spans import ServerSpan, ServerSpans
from deadlinemesh.transport.status import NO_METHOD, code_of, error_from, status_of
from deadlinemesh.transport.stragglers import UNREAD_AFTER_S, Exchange, Stage, Stragglers

__all__ = ["REQUEST_SECONDS", "WATCHES", "DeadlineInterceptor"]

_LOG = logging.getLogger("deadlinemesh.transport")

Handler = Callable[[Any, Any], Any]
if TYPE_CHECKING:
    MethodHandler = grpc.RpcMethodHandler[Any, Any]

REQUEST_SECONDS = 15.0
"""Seconds in which a request must follow its headers."""

WATCHES = 1024
"""`Health/Watch` calls at a time."""

MOST_HEADERS = 128
"""Entries of a call's metadata.

Until a peer has acknowledged its settings, the core accepts 16 MiB of metadata from it. A few
kilobytes of HPACK are enough to send that much.
"""

LARGEST_HEADERS = 64 * 1024
"""Bytes of a call's metadata."""

_COLLECT_AFTER = 4 * 1024 * 1024
"""Bytes of headers, of callers not believed yet, between two garbage collections. They are needed
because grpc.aio keeps each call's headers in a reference cycle.
"""

_HEADER_OBJECTS = 170
"""Bytes that each header takes beside its characters: a tuple and two strings."""

_AGED_BY = 5000
"""Headers of one call. With more, some may have reached the collector's oldest generation by the
time the call is refused.
"""

_AT_ONCE_S = 0.001
"""Seconds by which the peer's own timer may be early."""

# Health checks and reflection belong to no tenant and need no deadline.
_OPEN_SERVICES = ("/grpc.health.", "/grpc.reflection.")

# Of the call that runs in this task: its headers, their decoded values, and the instant of its
# arrival. Its grpc.aio context would decode each header again.
_ARRIVED: ContextVar[tuple[wire.Pairs, wire.Said, float]] = ContextVar("arrived")


class DeadlineInterceptor(grpc.aio.ServerInterceptor):
    """The only server interceptor of a hop. It must be the last one of its server, next to the
    handlers.

    `scopes` holds the calls being served. `background` spawns work that outlives them. After
    `drain`, new calls are refused.

    The gate decides from the headers alone. The request is read after that, for at most
    `request_seconds`. Only for callers believed before does grpc.aio read it first. Health and
    reflection are open to all callers, with at most `watches` calls of `Health/Watch` at a time.

        interceptor = DeadlineInterceptor("search", MeshGate("search", mesh_token))
        services = [("search.v1.SearchService", register)]
        server = MeshServer(ServerSettings("0.0.0.0:50051"), interceptor, services)
    """

    def __init__(
        self,
        hop: str,
        gate: Gate,
        *,
        clock: Clock = SYSTEM_CLOCK,
        telemetry: Telemetry | None = None,
        tracer: trace.Tracer | None = None,
        request_seconds: float = REQUEST_SECONDS,
        watches: int = WATCHES,
    ) -> None:
        self.hop = hop
        self.peers = Peers(clock)
        """Credentials shown and calls made on each connection."""
        self.scopes = Scopes(hop, self._report)
        self.background = Background(self.scopes)
        self._gate = gate
        self._clock = clock
        self._telemetry = telemetry or Telemetry()
        self._recording = bool(self._telemetry)
        self._spans = None if tracer is None else ServerSpans(tracer)
        self._request_seconds = request_seconds
        self.on_freed: Callable[[], None] = lambda: None
        """Called after a collection of headers that gives much memory back to the C library."""
        self._strange_headers = 0
        self._longest_table = 0
        crowded = f"has more than {MOST_HEADERS} entries or {LARGEST_HEADERS} bytes"
        self._crowded = self._refusing(
            status_of(InvalidRequest([Violation("metadata", crowded)], hop=hop)), condemns=True
        )
        self._unknown = self._refusing(NO_METHOD)
        self.stragglers = Stragglers(clock, self._unread)
        """The calls that wait for their peers."""
        self.readings = Readings(self.stragglers, clock)
        self._open_calls = OpenCalls(self.stragglers, self.peers, clock, request_seconds, watches)
        self._believed: Container[str] = getattr(gate, "believed", ())
        """Identity headers of callers that the gate has believed before."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wrapped: dict[str, MethodHandler] = {}
        self._swift: dict[str, MethodHandler] = {}
        self._answers: set[asyncio.Task[None]] = set()
        self._unanswered = 0
        self._all_answered: asyncio.Event | None = None
        self._draining = False

    async def answered(self) -> None:
        """Return once each call has handed its status to grpc.aio."""
        while self._unanswered:
            self._all_answered = asyncio.Event()
            await self._all_answered.wait()

    def watch_lag(self) -> LagWatch:
        """Record each stall of the running event loop, and the call that caused it,
        until stopped.
        """
        return LagWatch(self.scopes, self._lagged)

    def drain(self) -> None:
        """Refuse every new call from now on, and every call whose request has not arrived."""
        self._draining = True
        self.stragglers.hurry()

    def flush(self) -> None:
        """Finish now the spans of ended calls. Otherwise they wait for an idle event loop."""
        if self._spans is not None:
            self._spans.flush()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[MethodHandler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> MethodHandler | None:
        method: str = handler_call_details.method
        metadata: wire.Pairs = handler_call_details.invocation_metadata
        said = wire.decode(metadata)
        if said[1] in self._believed:
            wrapped = self._swift.get(method)
        else:
            self._free_headers()
            size = _bytes_of(metadata)
            self._strange_headers += size + _HEADER_OBJECTS * len(metadata)
            self._longest_table = max(self._longest_table, len(metadata))
            if len(metadata) > MOST_HEADERS or size > LARGEST_HEADERS:
                return self._crowded
            wrapped = self._wrapped.get(method)
        _ARRIVED.set((metadata, said, self._clock.monotonic()))
        if wrapped is not None:
            return wrapped
        self._loop = asyncio.get_running_loop()
        own_tasks(self._loop)
        handler = await continuation(handler_call_details)
        if handler is None:
            return self._unknown
        wrapped = self._wrapped[method] = self._wrap(method, handler)
        self._swift[method] = self._wrap_swiftly(method, handler) or wrapped
        return wrapped

    def _refusing(self, status: grpc.Status, *, condemns: bool = False) -> MethodHandler:
        """Return a handler that ends each call with `status`. `condemns` also condemns its
        connection.
        """

        async def refuse(requests: Any, context: Any) -> None:
            at, peer = self._clock.monotonic(), plain(context.peer())
            self.peers.charge(peer, REFUSED_CALL)
            if condemns:
                self.peers.condemn(peer)
            self._free_headers()  # now, as grpc.aio needs them no more
            task = asyncio.current_task()
            assert task is not None
            self.stragglers.reply(Exchange(task, "a refused method"), at)
            self._telemetry.record(CallRefused(self.hop, "", at, at, status.code.name, status.code.name))
            try:
                await context.abort_with_status(status)
            except grpc.aio.AbortError as aborted:
                aborted.__traceback__ = None  # the call keeps it: its frames would be a cycle
            except grpc.aio.InternalError:
                pass  # the peer has left

        handler: MethodHandler = grpc.stream_unary_rpc_method_handler(refuse)
        return handler

    def _free_headers(self) -> None:
        if self._strange_headers > _COLLECT_AFTER:
            # A collection of the oldest generation takes long, so only if the headers can be in it.
            # Making many objects is the cause of their promotion.
            gc.collect(2 if self._longest_table > _AGED_BY else 1)
            self._strange_headers = self._longest_table = 0
            self.on_freed()

    def _wrap(self, method: str, handler: MethodHandler) -> MethodHandler:
        served: _Method | OpenMethod
        if method.startswith(_OPEN_SERVICES):
            served, serializer = OpenMethod(self._open_calls, method, handler), handler.response_serializer
        else:
            served, serializer = _Method(self, method, handler), _serializer_of_stream(handler)
        # Every method is wrapped as one with a stream of requests. For a unary request, grpc.aio
        # reads the request before any code of ours runs: from any caller, and without a time limit.
        factory = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        parser = parser_of(method, handler.request_deserializer)
        wrapped: MethodHandler = factory(served.serve, parser, serializer)
        return wrapped

    def _wrap_swiftly(self, method: str, handler: MethodHandler) -> MethodHandler | None:
        """Wrap a method for callers that are trusted to send the one request that they have begun.

        grpc.aio then reads the request. This saves 16 µs for each call. None if the method takes a
        stream of requests, or is open to all callers.
        """
        if handler.request_streaming or method.startswith(_OPEN_SERVICES):
            return None
        factory = (
            grpc.unary_stream_rpc_method_handler if handler.response_streaming else grpc.unary_unary_rpc_method_handler
        )
        parser = parser_of(method, handler.request_deserializer, raises=False)
        served = _Method(self, method, handler, reads=False)
        wrapped: MethodHandler = factory(served.serve, parser, _serializer_of_stream(handler))
        return wrapped

    def _unread(self, exchange: Exchange) -> None:
        owner, now = exchange.context, self._clock.monotonic()
        tenant_id, run_id, due_at = (
            ("", "", now) if owner is None else (owner.tenant_id, owner.run_id, owner.absolute_deadline)
        )
        what = f"the unread reply of {exchange.method}"
        self._telemetry.record(OrphanReported(self.hop, tenant_id, run_id, what, max(0.0, now - due_at)))

    def _shutting_down(self) -> Draining:
        return Draining(f"{self.hop} is shutting down; another instance will serve you", hop=self.hop)

    def closed(self, address: str, why: str) -> None:
        """Record that a connection of `address` was closed.

        `why` is `connections` or `calls`, if it had too many of them, or `quiet`.
        """
        self._telemetry.record(ConnectionClosed(self.hop, address, why))

    def _report(self, orphan: Orphan) -> None:
        owner = orphan.context
        self._telemetry.record(OrphanReported(orphan.hop, owner.tenant_id, owner.run_id, orphan.task, orphan.age))

    def _lagged(self, lag: Lag) -> None:
        tenant_id, run_id = ("", "") if lag.context is None else (lag.context.tenant_id, lag.context.run_id)
        self._telemetry.record(LoopLagged(self.hop, tenant_id, run_id, lag.seconds, lag.function))


class _Method:
    """One method of a hop, as grpc.aio calls it: the path of each call from its headers to its
    status.
    """

    def __init__(self, hop: DeadlineInterceptor, name: str, handler: MethodHandler, *, reads: bool = True) -> None:
        kind = ("stream" if handler.request_streaming else "unary", "stream" if handler.response_streaming else "unary")
        self._hop = hop
        self._name = name
        self._reads = reads and not handler.request_streaming
        self._is_brief = not (reads or handler.request_streaming or handler.response_streaming)
        """True if unary both ways and from a believed caller. Its connection is noted only when in
        doubt.
        """
        self._handler: Handler = getattr(handler, "_".join(kind))
        self._serialize = None if handler.response_streaming else handler.response_serializer
        """Serializer of a unary response. An unread response is held as bytes, not as a message
        too.
        """
        self._yields = isasyncgenfunction(self._handler)
        """True if the handler yields its responses. A stream's handler may also write
        them itself.
        """

    async def serve(self, requests: Any, context: Any) -> Any:
        # Each step of a response on its way out is in this one frame. One more frame would cost
        # time for every message.
        hop = self._hop
        metadata, said, at = _ARRIVED.get()
        # With the loop as argument, asyncio need not ask the system if this process was forked.
        task: Any = asyncio.current_task(hop._loop) or asyncio.current_task()
        exchange = Exchange(task, self._name)
        if self._reads:
            hop.stragglers.expect(exchange, Stage.REQUEST, at + hop._request_seconds)
        answer = GuardedContext(context, exchange, hop.stragglers)
        deadline: DeadlineContext | None = None
        scope: Scope | None = None
        error: MeshError | None = None
        result: Any = None
        span = None if hop._spans is None else hop._spans.begin(self._name, metadata, context.peer())
        hop._unanswered += 1
        try:
            try:
                if hop._draining:
                    raise hop._shutting_down()
                native = context.time_remaining()
                if native is not None:  # as of the arrival: the call may have waited since
                    native += hop._clock.monotonic() - at
                arrival = Arrival(self._name, metadata, at, native, said)
                if arrival.malformed is not None:
                    hop._telemetry.record(MalformedRemaining(hop.hop, self._name, arrival.malformed))
                try:
                    admitted = answer.admitted = hop._gate(arrival)
                    deadline = admitted.context
                finally:
                    if arrival.on_end is not None:
                        task.add_done_callback(arrival.on_end)
                if not self._is_brief or hop.peers.in_doubt:
                    hop.peers.know(plain(context.peer()))
                if span is not None:
                    deadline = span.describe(deadline)
                if hop._recording:
                    hop._telemetry.record(
                        CallStarted(hop.hop, self._name, deadline.run_id, at, deadline.absolute_deadline)
                    )
                scope = hop.scopes.open(deadline)
                scope.on_overdue = partial(self._answer_for, answer)
                scope.backlog = arrival.backlog
                exchange.context = deadline
                async with scope:
                    if not self._reads:
                        request = requests
                        if type(request) is InvalidRequest:  # in place of a message
                            raise request
                    else:
                        if arrival.by_turns:
                            async with hop.readings.turn(deadline.tenant_id, exchange):
                                request = await received(context, self._name)
                        else:
                            request = await received(context, self._name)
                        exchange.work()
                    if self._yields:
                        responses = self._handler(request, answer)
                        request = None
                        write: Callable[[Any], Awaitable[None]] = answer.write
                        try:
                            async for response in responses:
                                exchange.sending_since = hop._clock.monotonic()
                                await write(response)
                                exchange.sending_since = inf
                                write = context.write
                        except BaseException:
                            self._note_unread(exchange)  # now: closing the generator may take long
                            await responses.aclose()
                            raise
                    else:
                        answering = self._handler(request, answer)
                        request = None
                        result = await answering
                        if result is not None and self._serialize is not None:
                            result = self._serialize(result)
            except BaseException as raised:
                if exchange.request_late and isinstance(raised, asyncio.CancelledError):
                    task.uncancel()
                    late = late_request(self._name, hop._request_seconds)
                    error = hop._shutting_down() if hop._draining else late
                else:
                    error = self._error_of(raised, scope)
            finally:
                if span is not None or hop._recording:
                    self._conclude(context, at, deadline, error, span)
                if exchange.sending_since < inf:
                    self._note_unread(exchange)
                hop.stragglers.reply(exchange, hop._clock.monotonic())
            if error is not None:
                if isinstance(error, Unauthenticated):
                    hop.peers.charge(plain(context.peer()), REFUSED_CALL)
                await self._refuse(error, scope, answer)
            return result
        finally:
            error = None  # its traceback holds this frame: a cycle
            hop._unanswered -= 1
            if not hop._unanswered and hop._all_answered is not None:
                hop._all_answered.set()

    def _note_unread(self, exchange: Exchange) -> None:
        """Report a message that the peer has left unread until the deadline."""
        context, now = exchange.context, self._hop._clock.monotonic()
        if context is None or now - exchange.sending_since < UNREAD_AFTER_S:
            return
        if context.absolute_deadline - now <= _AT_ONCE_S:
            self._hop.stragglers.unread(exchange)

    def _error_of(self, raised: BaseException, scope: Scope | None) -> MeshError:
        """Return the error for the client. Raises `raised` again if the client gets no error of
        ours.
        """
        if isinstance(raised, MeshError):
            return raised
        if isinstance(raised, grpc.aio.AioRpcError):
            return error_from(raised, "an upstream")
        if isinstance(raised, grpc.aio.AbortError):
            raise raised  # the handler wrote its own status
        if isinstance(raised, (grpc.aio.InternalError, asyncio.CancelledError)) and scope is not None:
            # A response could not be written, or the call was cancelled outside its scope: the
            # client has left.
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

    async def _refuse(self, error: MeshError, scope: Scope | None, answer: GuardedContext) -> None:
        """End the call with the status of `error`."""
        if scope is not None and scope.caller_left:
            raise asyncio.CancelledError from error  # no client is left: grpc.aio frees the call
        if not answer.done():
            error.hop = error.hop or self._hop.hop
            await answer.end_with(status_of(error, None if scope is None else scope.context))

    def _answer_for(self, answer: GuardedContext, scope: Scope) -> None:
        """Send the status of a call if its handler does not end: the client must not
        wait for that.
        """
        if not answer.done():
            answers = self._hop._answers
            ending = answer.end_with(status_of(scope.stopped(), scope.context))
            task = asyncio.get_running_loop().create_task(ending, context=outside_any_scope())
            answers.add(task)
            task.add_done_callback(answers.discard)


def _serializer_of_stream(handler: MethodHandler) -> Callable[[Any], bytes] | None:
    """The serializer for grpc.aio. None for unary responses: grpc.aio gets them as bytes."""
    return handler.response_serializer if handler.response_streaming else None


def _bytes_of(metadata: wire.Pairs) -> int:
    return sum(map(len, chain.from_iterable(metadata)))


def _written(context: Any) -> grpc.StatusCode:
    """The status code that the handler itself has set: by `abort`, by `set_code`, or OK by
    returning.
    """
    code = context.code()
    if code is None:
        return grpc.StatusCode.OK
    return code if isinstance(code, grpc.StatusCode) else grpc.StatusCode.UNKNOWN
