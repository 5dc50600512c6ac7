"""What the tests of hazards share: the libraries as they come, and the word for when one is cured."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, NoReturn

import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from tests.mesh.rpc import begin, serving_plainly, within_bounds

LONG = 60.0
"""Seconds of deadlines that are not meant to pass."""


def cured(hazard: str, workaround: str) -> NoReturn:
    """Fail with the good news."""
    pytest.fail(f"{hazard} is cured in the installed version: {workaround} can go, and so can this half of the test")


@asynccontextmanager
async def plain(
    handlers: Mapping[str, grpc.RpcMethodHandler],
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
    """Cancel `task` and wait for its end, whatever that is."""
    task.cancel()
    with suppress(asyncio.CancelledError, Exception):
        await task


def swallowing(times: int) -> tuple[Callable[[bytes, Any], Coroutine[Any, Any, bytes]], list[str], asyncio.Event]:
    """A handler's work that swallows so many cancels, what befalls it, and the event of each."""
    befallen: list[str] = []
    something = asyncio.Event()

    def befell(what: str) -> None:
        befallen.append(what)
        something.set()

    async def work(request: bytes, context: Any) -> bytes:
        befell("began")
        try:
            for _ in range(times):
                try:
                    await asyncio.get_running_loop().create_future()
                except asyncio.CancelledError:
                    befell("swallowed")
            await asyncio.get_running_loop().create_future()
        finally:
            befell("ended")
        return b""

    return work, befallen, something


async def until(what: str, befallen: list[str], something: asyncio.Event) -> None:
    """Wait until `what` has befallen the work."""
    while what not in befallen:
        something.clear()
        await within_bounds(something.wait())


class Spans:
    """A tracer provider that keeps in memory what it is told."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("tests")

    def ended(self, kind: SpanKind) -> list[ReadableSpan]:
        """The spans of this kind that have ended."""
        return [span for span in self._exporter.get_finished_spans() if span.kind is kind]

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
