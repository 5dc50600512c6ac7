"""OpenTelemetry's gRPC package, switched on and corrected.

It names and opens the spans. Its client interceptors are not used: under them, a cancelled unary
call never reaches the server. Its server wrappers are not used either. They break read/write
handlers, detach contexts in generators, and leave the status unset if a deadline ends the call.

Instead the inbound interceptor and the channel decorator open and close the spans, where the true
status is known. They record the end at once and report it when there is time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import grpc
from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.instrumentation.grpc._aio_client import _BaseAioClientInterceptor
from opentelemetry.instrumentation.grpc._aio_server import OpenTelemetryAioServerInterceptor
from opentelemetry.propagate import extract, inject
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from deadlinemesh.deadline import DeadlineContext, Deferred
from deadlinemesh.errors import Cause
from deadlinemesh.transport.ended import code_of_ended

__all__ = ["ClientSpan", "ClientSpans", "ServerSpan", "ServerSpans"]


def _describe(span: Span, method: str, context: DeadlineContext) -> None:
    span.set_attributes(
        {
            "rpc.system.name": "grpc",
            "rpc.method": method,
            "mesh.tenant_id": context.tenant_id,
            "mesh.tier": context.tier,
            "mesh.run_id": context.run_id,
            "deadline.remaining_ms": context.remaining * 1000,
        }
    )


def _end(span: Span, code: grpc.StatusCode, cause: str, description: str, at: int) -> None:
    attributes: dict[str, str | int] = {"rpc.grpc.status_code": code.value[0], "rpc.status_code": code.name}
    if code is not grpc.StatusCode.OK:
        attributes["error.type"] = cause or code.name
        span.set_status(Status(StatusCode.ERROR, description))
    span.set_attributes(attributes)
    span.end(at)


class _Plain:
    """A tracer that gives OpenTelemetry's package a plain span in place of a context manager: its
    context managers fail to detach in generators.
    """

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    def start_as_current_span(
        self, name: str, kind: SpanKind, attributes: Mapping[str, Any], set_status_on_exception: bool
    ) -> Span:
        return self._tracer.start_span(name, kind=kind, attributes=attributes)


class ServerSpans(OpenTelemetryAioServerInterceptor):
    """Server spans for `inbound`. Never installed as an interceptor itself."""

    def __init__(self, tracer: trace.Tracer) -> None:
        super().__init__(_Plain(tracer))
        self._deferred = Deferred()

    def begin(self, method: str, metadata: Sequence[tuple[str, str | bytes]], peer: str) -> ServerSpan:
        """Open the span of a call and make it current in the running task. That task belongs to the
        call and ends with it.
        """
        call = _Call(method, metadata, peer)
        contexts.attach(extract(dict(metadata)))
        span: Span = self._start_span(call, call)
        contexts.attach(trace.set_span_in_context(span))
        return ServerSpan(method, span, self._deferred)

    def flush(self) -> None:
        """Report now every call that has ended."""
        self._deferred.flush()


class ServerSpan:
    """The span of one served call."""

    def __init__(self, method: str, span: Span, deferred: Deferred) -> None:
        self._method = method
        self._span = span
        self._deferred = deferred

    def describe(self, context: DeadlineContext) -> DeadlineContext:
        """Record the call's owner and its remaining time. Returns the context with this span's
        trace id.
        """
        _describe(self._span, self._method.lstrip("/"), context)
        return replace(context, trace_id=f"{self._span.get_span_context().trace_id:032x}")

    def end(self, code: grpc.StatusCode, cause: str = "", description: str = "") -> None:
        """End the span with the status that the client will see."""
        self._deferred(_end, self._span, code, cause, description, time.time_ns())


class _Call(NamedTuple):
    """A call in the form that OpenTelemetry's package reads, with its metadata read once."""

    method: str
    metadata: Sequence[tuple[str, str | bytes]]
    from_peer: str

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]:
        return self.metadata

    def peer(self) -> str:
        return self.from_peer


class ClientSpans(_BaseAioClientInterceptor):
    """Client spans for `outbound`. Never installed as an interceptor itself."""

    def __init__(self, tracer: trace.Tracer) -> None:
        super().__init__(tracer)
        self._deferred = Deferred()

    def begin(self, method: str, context: DeadlineContext) -> ClientSpan:
        """Open the span of a call."""
        service, name = method.lstrip("/").split("/", 1)
        span: Span = self._tracer.start_span(
            name=method,
            kind=SpanKind.CLIENT,
            attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": name},
        )
        _describe(span, method.lstrip("/"), context)
        return ClientSpan(span, context, self._deferred)

    def flush(self) -> None:
        """Report now every call that has ended."""
        self._deferred.flush()


class ClientSpan:
    """The span of one outbound call. `carrier` is the trace context for the call's metadata."""

    def __init__(self, span: Span, context: DeadlineContext, deferred: Deferred) -> None:
        self._span = span
        self._deferred = deferred
        self._context = context
        self.carrier: dict[str, str] = {}
        inject(self.carrier, context=trace.set_span_in_context(span))

    def end_with(self, call: grpc.aio.Call) -> None:
        """End the span with the status of `call` when that ends: answered, failed, cut or
        cancelled.
        """
        call.add_done_callback(self._ended)

    def end_unsent(self, error: BaseException) -> None:
        """End the span of a call that could not be begun."""
        self._span.set_attribute("error.type", type(error).__qualname__)
        self._span.set_status(Status(StatusCode.ERROR, str(error)))
        self._span.end()

    def _ended(self, call: grpc.aio.Call) -> None:
        self._deferred(self._end, call, self._context.is_expired, time.time_ns())

    def _end(self, call: grpc.aio.Call, expired: bool, at: int) -> None:
        code = code_of_ended(call)
        cut = code is grpc.StatusCode.CANCELLED and expired
        _end(self._span, code, Cause.DEADLINE_SPENT.value if cut else "", "", at)
