"""OpenTelemetry's gRPC package, switched on and corrected.

Used from it: extraction of the remote context, naming and opening of spans. Not used: its client interceptors, under which a
cancelled unary call never reaches the server, and its server wrappers, which break read/write handlers, detach contexts in
generators and leave the status of a call killed by its deadline unset. Instead the inbound interceptor and the channel decorator
open and close the spans themselves, where the true status is known.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import grpc
from opentelemetry import trace
from opentelemetry.instrumentation.grpc._aio_client import _BaseAioClientInterceptor
from opentelemetry.instrumentation.grpc._aio_server import OpenTelemetryAioServerInterceptor
from opentelemetry.propagate import inject
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from deadlinemesh.deadline import DeadlineContext
from deadlinemesh.errors import Cause

__all__ = ["ClientSpans", "ServerSpans"]


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


def _conclude(span: Span, code: grpc.StatusCode, cause: str, description: str) -> None:
    attributes: dict[str, str | int] = {"rpc.grpc.status_code": code.value[0], "rpc.status_code": code.name}
    if code is not grpc.StatusCode.OK:
        attributes["error.type"] = cause or code.name
        span.set_status(Status(StatusCode.ERROR, description))
    span.set_attributes(attributes)


class ServerSpans(OpenTelemetryAioServerInterceptor):
    """Server spans for `inbound`. Never installed as an interceptor itself."""

    @contextmanager
    def serving(self, details: Any, context: Any) -> Iterator[Span]:
        """The span of the call, current for the block. Close the block before aborting: an abort is not an exception."""
        with self._set_remote_context(context), self._start_span(details, context) as span:
            yield span

    def describe(self, span: Span, method: str, context: DeadlineContext) -> None:
        """Say whose call it is and how much time it came with."""
        _describe(span, method.lstrip("/"), context)

    def conclude(self, span: Span, code: grpc.StatusCode, cause: str = "", description: str = "") -> None:
        """Give the span the status that the client will see."""
        _conclude(span, code, cause, description)


class ClientSpans(_BaseAioClientInterceptor):
    """Client spans for `outbound`. Never installed as an interceptor itself."""

    def begin(self, method: str, context: DeadlineContext, carrier: dict[str, str]) -> Span:
        """Open the span of a call, and write its trace context into `carrier`."""
        service, name = method.lstrip("/").split("/", 1)
        span: Span = self._tracer.start_span(
            name=method,
            kind=SpanKind.CLIENT,
            attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": name},
        )
        _describe(span, method.lstrip("/"), context)
        inject(carrier, context=trace.set_span_in_context(span))
        return span

    def end_with(self, span: Span, call: grpc.aio.Call, context: DeadlineContext) -> None:
        """End `span` with the status of `call`, whenever and however it ends: answered, failed, cut or cancelled."""

        def ended(done: grpc.aio.Call) -> None:
            code = _code_of_done(done)
            cut = code is grpc.StatusCode.CANCELLED and context.is_expired
            _conclude(span, code, Cause.DEADLINE_SPENT.value if cut else "", "")
            span.end()

        call.add_done_callback(ended)

    def end_unsent(self, span: Span, error: BaseException) -> None:
        """End the `span` of a call that could not even be begun."""
        span.set_attribute("error.type", type(error).__qualname__)
        span.set_status(Status(StatusCode.ERROR, str(error)))
        span.end()


def _code_of_done(call: grpc.aio.Call) -> grpc.StatusCode:
    """The code of a call that is done: then `code()` has nothing to wait for, so one step of it is the whole."""
    step = call.code().__await__()
    try:
        next(iter(step))
    except StopIteration as result:
        code: grpc.StatusCode = result.value
        return code
    return grpc.StatusCode.UNKNOWN


def tracer_enabled() -> bool:
    """Whether a tracing SDK is configured in this process."""
    return not isinstance(trace.get_tracer_provider(), (trace.NoOpTracerProvider, trace.ProxyTracerProvider))


def no_span() -> AbstractContextManager[Span]:
    """Stands for `ServerSpans.serving` while tracing is off."""
    return _NO_SPAN


class _NoSpan(AbstractContextManager[Span]):
    def __enter__(self) -> Span:
        return trace.INVALID_SPAN

    def __exit__(self, *_: object) -> None:
        return None


_NO_SPAN = _NoSpan()
