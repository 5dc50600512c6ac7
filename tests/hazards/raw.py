"""What the tests of hazards share: the libraries as they come, and the word for when one is cured."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import grpc
import pytest
from opentelemetry.instrumentation.grpc import aio_client_interceptors, aio_server_interceptor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind
from tests.support.rpc import begin, serving_plainly, within_bounds

LONG = 60.0
"""Seconds of deadlines that are not meant to pass."""


def cured(hazard: str, workaround: str) -> NoReturn:
    """Fail with the good news."""
    pytest.fail(f"{hazard} is cured in the installed version: {workaround} can go, and so can this half of the test")


@asynccontextmanager
async def plain(
    handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]],
    *,
    server_interceptors: tuple[grpc.aio.ServerInterceptor, ...] = (),
    client_interceptors: tuple[Any, ...] = (),
    options: tuple[tuple[str, Any], ...] = (),
) -> AsyncIterator[grpc.aio.Channel]:
    """A plain grpc.aio channel to a plain grpc.aio server of `handlers`."""
    async with serving_plainly(handlers, interceptors=server_interceptors) as target:
        async with grpc.aio.insecure_channel(
            target, interceptors=list(client_interceptors), options=list(options)
        ) as channel:
            await within_bounds(channel.channel_ready())
            yield channel


async def some_round_trips(channel: grpc.aio.Channel, method: str) -> None:
    """Let so much happen on the connection that whatever was sent before has long arrived."""
    for _ in range(20):
        await within_bounds(begin(channel, "unary_unary", method, timeout=LONG))


async def left_alone(task: asyncio.Task[Any]) -> None:
    """Cancel `task` and give it a turn or two to end."""
    task.cancel()
    for _ in range(3):
        await asyncio.sleep(0)


class Swallowing:
    """A handler's work that swallows so many cancels, and tells what befalls it."""

    def __init__(self, times: int) -> None:
        self.befallen: list[str] = []
        self._times = times
        self._something = asyncio.Event()
        self._task: asyncio.Task[Any] | None = None

    async def __call__(self, request: bytes, context: Any) -> bytes:
        self._task = asyncio.current_task()
        self._befell("began")
        try:
            for _ in range(self._times):
                try:
                    await asyncio.get_running_loop().create_future()
                except asyncio.CancelledError:
                    self._befell("swallowed")
            await asyncio.get_running_loop().create_future()
        finally:
            self._befell("ended")
        return b""

    async def until(self, what: str) -> None:
        """Wait until `what` has befallen it."""
        while what not in self.befallen:
            self._something.clear()
            await within_bounds(self._something.wait())

    async def let_go(self) -> None:
        """End it whatever it takes: a plain server cannot be stopped before."""
        assert self._task is not None
        while not self._task.done():
            await left_alone(self._task)

    def _befell(self, what: str) -> None:
        self.befallen.append(what)
        self._something.set()


class Spans(SpanExporter):
    """A tracer provider that keeps in memory what it is told."""

    def __init__(self) -> None:
        self.first = {kind: asyncio.Event() for kind in SpanKind}
        """Set when a span of the kind has ended."""
        self._ended: list[ReadableSpan] = []
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self))
        self.tracer = self.provider.get_tracer("tests")

    def ended(self, kind: SpanKind) -> list[ReadableSpan]:
        """The spans of this kind that have ended."""
        return [span for span in self._ended if span.kind is kind]

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Take spans from the SDK, on the event loop, where they end."""
        for span in spans:
            self._ended.append(span)
            self.first[span.kind].set()
        return SpanExportResult.SUCCESS

    def the(self, kind: SpanKind) -> ReadableSpan:
        """The one span of this kind, which has ended."""
        (span,) = self.ended(kind)
        return span


async def settled() -> None:
    """Let what is scheduled run, garbage be collected, and what that schedules run too."""
    for _ in range(3):
        gc.collect()
        for _ in range(5):
            await asyncio.sleep(0)


def otel_client_interceptors(spans: Spans) -> tuple[Any, ...]:
    """The package's own interceptors for a channel."""
    make: Any = aio_client_interceptors  # the package is untyped
    return tuple(make(spans.provider))


def otel_server_interceptor(spans: Spans) -> Any:
    """The package's own interceptor for a server."""
    make: Any = aio_server_interceptor
    return make(spans.provider)
