"""Every call into a hop: read the wire, set the context, run the handler in its scope, map errors to status. Nowhere else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import aclosing, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from hmac import compare_digest
from inspect import isasyncgenfunction
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
from opentelemetry import trace

from deadlinemesh.deadline import SYSTEM_CLOCK, Background, Clock, DeadlineContext, Orphan, Scope, Scopes
from deadlinemesh.deadline.scope import outside_any_scope, own_tasks
from deadlinemesh.errors import (
    ClientCancelled,
    Draining,
    InternalFailure,
    MeshError,
    NoDeadline,
    Stopped,
    Unauthenticated,
)
from deadlinemesh.telemetry import CallEnded, CallStarted, MalformedRemaining, OrphanReported, Telemetry
from deadlinemesh.transport import wire
from deadlinemesh.transport.spans import ServerSpans, no_span
from deadlinemesh.transport.status import code_of, error_from, status_of

__all__ = ["Arrival", "DeadlineInterceptor", "Gate", "MeshGate"]

_LOG = logging.getLogger("deadlinemesh.transport")

Handler = Callable[[Any, Any], Any]
if TYPE_CHECKING:
    MethodHandler = grpc.RpcMethodHandler[Any, Any]

# The metadata of the call whose task this is, and when it came. Asking the call's context would decode every header again, and
# when the handler begins, the request has been awaited as well.
_ARRIVED: ContextVar[tuple[Iterable[tuple[str, str | bytes]], float]] = ContextVar("arrived")

# Health checks and reflection belong to no tenant and need no deadline.
_OPEN_SERVICES = ("/grpc.health.", "/grpc.reflection.")


class Arrival(NamedTuple):
    """A call at the door: what it says of itself, none of it believed yet."""

    method: str
    metadata: Mapping[str, str | bytes]
    incoming: wire.Incoming
    native_remaining: float | None
    """What `grpc-timeout` left, in seconds; None without one."""
    at: float
    """The instant of arrival."""


Gate = Callable[[Arrival], DeadlineContext]
"""Decides who is calling and until when. Raises the error to refuse with."""


class MeshGate:
    """The door of an inner hop: believes peers that know the mesh's token, and refuses a call without a deadline."""

    def __init__(self, hop: str, mesh_token: str, clock: Clock = SYSTEM_CLOCK) -> None:
        if not mesh_token:
            raise ValueError("the mesh token must not be empty: it is what tells a peer from a stranger")
        self._hop = hop
        self._token = mesh_token.encode()
        self._clock = clock

    def __call__(self, arrival: Arrival) -> DeadlineContext:
        incoming = arrival.incoming
        if not compare_digest(incoming.mesh_token.encode(), self._token):
            raise Unauthenticated(
                f"{self._hop} is internal: send the mesh's token as `{wire.MESH_TOKEN}`; clients call the orchestrator",
                hop=self._hop,
            )
        if incoming.remaining is None:
            raise NoDeadline(f"{self._hop} takes no call without a deadline: set the call's timeout", hop=self._hop)
        return DeadlineContext(
            tenant_id=incoming.tenant_id,
            absolute_deadline=arrival.at + incoming.remaining,
            tier=incoming.tier,
            trace_id=incoming.trace_id or wire.new_trace_id(),
            run_id=incoming.run_id,
            started_at=arrival.at,
            clock=self._clock,
        )


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

    def drain(self) -> None:
        """Refuse every new call from now on."""
        self._draining = True

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[MethodHandler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> MethodHandler | None:
        own_tasks(asyncio.get_running_loop())
        _ARRIVED.set((handler_call_details.invocation_metadata, self._clock.monotonic()))
        method: str = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is not None:
            return wrapped
        handler = await continuation(handler_call_details)
        if handler is None or method.startswith(_OPEN_SERVICES):
            return handler
        wrapped = self._wrapped[method] = self._wrap(method, handler)
        return wrapped

    def _wrap(self, method: str, handler: MethodHandler) -> MethodHandler:
        kind = ("stream" if handler.request_streaming else "unary", "stream" if handler.response_streaming else "unary")
        behaviour: Handler = getattr(handler, "_".join(kind))
        run = _streaming(behaviour) if handler.response_streaming else behaviour

        async def serve(request: Any, context: Any) -> Any:
            self._unanswered += 1
            try:
                return await self._serve(method, run, request, context)
            finally:
                self._unanswered -= 1
                if not self._unanswered and self._all_answered is not None:
                    self._all_answered.set()

        factory = getattr(grpc, "_".join(kind) + "_rpc_method_handler")
        wrapped: MethodHandler = factory(serve, handler.request_deserializer, handler.response_serializer)
        return wrapped

    async def _serve(self, method: str, run: Handler, request: Any, context: Any) -> Any:
        metadata, at = _ARRIVED.get()
        deadline: DeadlineContext | None = None
        error: MeshError | None = None
        scope: Scope | None = None
        result: Any = None
        answer = _Answer(context)
        spans = self._spans
        with no_span() if spans is None else spans.serving(_Details(method), context) as span:
            try:
                deadline = self._admit(method, dict(metadata), self._native_remaining(context, at), at)
                if spans is not None:
                    deadline = replace(deadline, trace_id=f"{span.get_span_context().trace_id:032x}")
                    spans.describe(span, method, deadline)
                if self._telemetry:
                    self._telemetry.record(
                        CallStarted(self.hop, method, deadline.run_id, at, deadline.absolute_deadline)
                    )
                scope = opened = self.scopes.open(deadline)
                scope.on_overdue = lambda: self._answer_for(opened, answer)
                result = await scope.run(_call(run, request, answer))
            except MeshError as refused:
                error = refused
            except grpc.aio.AioRpcError as failed:
                error = error_from(failed, "an upstream")
            except grpc.aio.AbortError:
                raise  # the handler wrote its own status
            except (grpc.aio.InternalError, asyncio.CancelledError):
                # An answer could not be written, or the call was cancelled beside its scope: nobody is there any more.
                if scope is None:
                    raise
                error = scope.left()
            except Exception:
                _LOG.exception("%s%s failed", self.hop, method)
                error = InternalFailure(f"{self.hop} failed; its log says why", hop=self.hop)
            finally:
                code = _written(context) if error is None else code_of(error)
                cause = error.cause.value if isinstance(error, Stopped) else ""
                if spans is not None:
                    spans.conclude(span, code, cause, "" if error is None else str(error))
                if deadline is not None and self._telemetry:
                    self._telemetry.record(self._ended(method, deadline, code, cause))
        if isinstance(error, ClientCancelled) and scope is not None and scope.caller_left:
            raise asyncio.CancelledError from error  # nobody is there to read a status: grpc.aio lets the call go
        if error is not None and not context.done():
            error.hop = error.hop or self.hop
            with suppress(grpc.aio.InternalError):  # the peer has left already
                await answer.opened()
                await context.abort_with_status(status_of(error, deadline))
        return result

    def _answer_for(self, scope: Scope, answer: _Answer) -> None:
        """Send the status of a call whose handler will not end: its client must not wait for that."""

        async def abort() -> None:
            with suppress(grpc.aio.AbortError, grpc.aio.InternalError):
                await answer.opened()
                await answer.abort_with_status(status_of(scope.stopped(), scope.context))

        if not answer.done():
            task = asyncio.get_running_loop().create_task(abort(), context=outside_any_scope())
            self._answers.add(task)
            task.add_done_callback(self._answers.discard)

    def _native_remaining(self, context: Any, at: float) -> float | None:
        """What `grpc-timeout` left at the instant `at`; the request may have taken a while to follow its headers."""
        now: float | None = context.time_remaining()
        return None if now is None else now + self._clock.monotonic() - at

    def _admit(self, method: str, metadata: dict[str, str | bytes], native: float | None, at: float) -> DeadlineContext:
        if self._draining:
            raise Draining(f"{self.hop} is shutting down; another instance will serve you", hop=self.hop)
        incoming = wire.decode(metadata, native)
        if incoming.malformed_remaining is not None:
            self._telemetry.record(MalformedRemaining(self.hop, method, incoming.malformed_remaining))
        return self._gate(Arrival(method, metadata, incoming, native, at))

    def _ended(self, method: str, deadline: DeadlineContext, code: grpc.StatusCode, cause: str) -> CallEnded:
        return CallEnded(
            hop=self.hop,
            method=method,
            tenant_id=deadline.tenant_id,
            tier=deadline.tier,
            run_id=deadline.run_id,
            started_at=deadline.started_at,
            deadline_at=deadline.absolute_deadline,
            ended_at=self._clock.monotonic(),
            code=code.name,
            cause=cause,
        )

    def _report(self, orphan: Orphan) -> None:
        owner = orphan.context
        self._telemetry.record(OrphanReported(orphan.hop, owner.tenant_id, owner.run_id, orphan.task, orphan.age))


class _Answer:
    """A call's context as its handler sees it.

    What is sent first carries the response's headers, and is never cut in the middle: grpc.aio would take the headers for
    unsent and send them again with the status, the core would refuse both, and the client would be left without a status.
    """

    __slots__ = ("_context", "_opening", "write")

    def __init__(self, context: Any) -> None:
        self._context = context
        self._opening: asyncio.Task[None] | None = None
        self.write: Callable[[Any], Awaitable[None]] = self._write_first

    async def _write_first(self, message: Any) -> None:
        await self._open(self._context.write(message))

    async def send_initial_metadata(self, metadata: Any) -> None:
        await self._open(self._context.send_initial_metadata(metadata))

    async def _open(self, sending: Coroutine[Any, Any, None]) -> None:
        self._opening = asyncio.get_running_loop().create_task(sending, context=outside_any_scope())
        await asyncio.shield(self._opening)
        self.write = self._context.write

    async def opened(self) -> None:
        """Wait until what was sent first, if anything was, has left."""
        if self._opening is not None and not self._opening.done():
            await asyncio.wait({self._opening})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


@dataclass(frozen=True, slots=True)
class _Details:
    method: str


def _call(run: Handler, request: Any, context: Any) -> Coroutine[Any, Any, Any]:
    outcome: Coroutine[Any, Any, Any] = run(request, context)
    return outcome


def _written(context: Any) -> grpc.StatusCode:
    """The code that the handler itself has given its call: by `abort`, by `set_code`, or by simply returning."""
    code = context.code()
    if code is None:
        return grpc.StatusCode.OK
    return code if isinstance(code, grpc.StatusCode) else grpc.StatusCode.UNKNOWN


def _streaming(behaviour: Handler) -> Handler:
    """A coroutine function that writes what the handler yields, so that the scope's task is the one that does both."""
    if not isasyncgenfunction(behaviour):
        return behaviour  # it uses context.write itself

    async def write_all(request: Any, context: Any) -> None:
        responses: AsyncIterator[Any]
        async with aclosing(behaviour(request, context)) as responses:
            async for response in responses:
                await context.write(response)

    return write_all
