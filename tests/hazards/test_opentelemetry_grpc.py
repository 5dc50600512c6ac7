"""Field notes, section 3: what OpenTelemetry's gRPC package does to calls, and that tracing does not do it to ours.

Each test shows first that the package still behaves so, and then that the mesh, traced, does not suffer from it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode
from tests.hazards.raw import (
    LONG,
    Spans,
    cured,
    otel_client_interceptors,
    otel_server_interceptor,
    plain,
    settled,
    some_round_trips,
)
from tests.support.rpc import (
    ARITIES,
    SERVICE,
    STREAMING,
    TOKEN,
    Asleep,
    begin,
    echo,
    finish,
    handler,
    in_a_scope,
    methods,
    responses,
    serving,
    with_seconds,
    within_bounds,
)

from deadlinemesh.deadline import entered
from deadlinemesh.errors import Cause, DeadlineSpent, NotFound, Violation
from deadlinemesh.telemetry import CallEnded
from deadlinemesh.transport.channels import mesh_channel

each_arity = pytest.mark.parametrize("arity", ARITIES)
each_stream = pytest.mark.parametrize("arity", STREAMING)
each_unary = pytest.mark.parametrize("arity", [arity for arity in ARITIES if arity not in STREAMING])

SOON = 0.3
"""Seconds of deadlines that are meant to pass, but not before the handler has begun."""


def quick() -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    """One more method, for round trips beside the call that is looked at."""

    async def answer(request: bytes, context: Any) -> bytes:
        return await echo(request, context)

    return {"quick": handler("unary_unary", answer)}


def told(span: ReadableSpan) -> tuple[StatusCode, object, object]:
    """What a span says of how its call ended."""
    attributes = span.attributes or {}
    return span.status.status_code, attributes["rpc.grpc.status_code"], attributes.get("error.type")


async def the_span(spans: Spans, kind: SpanKind) -> ReadableSpan:
    """The one span of this kind, once it has ended."""
    await within_bounds(spans.first[kind].wait())
    return spans.the(kind)


@each_unary
async def test_contrib_3271_a_cancelled_unary_call_never_reaches_the_server_but_ours_does_with_tracing_on(
    arity: str,
) -> None:
    asleep, spans = Asleep(), Spans()
    interceptors = otel_client_interceptors(spans)
    async with plain({**methods(asleep), **quick()}, client_interceptors=interceptors) as channel:
        caller = asyncio.ensure_future(finish(begin(channel, arity, timeout=LONG), arity))
        await within_bounds(asleep.began.wait())
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        await some_round_trips(channel, "quick")
        if asleep.ended.is_set():
            cured("contrib 3271", "the rule against the package's client interceptors")

    asleep, spans = Asleep(), Spans()
    async with serving(methods(asleep), tracer=spans.tracer) as hop:
        with entered(with_seconds(LONG)):
            caller = asyncio.ensure_future(responses(hop.mesh, arity))
            await within_bounds(asleep.began.wait())
            caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        await within_bounds(asleep.ended.wait())
        await hop.facts.see(CallEnded)
        assert told(await the_span(spans, SpanKind.CLIENT)) == (StatusCode.ERROR, 1, "CANCELLED")
        assert told(await the_span(spans, SpanKind.SERVER)) == (StatusCode.ERROR, 1, "CLIENT_CANCELLED")


@each_unary
async def test_contrib_3271_a_unary_call_under_asyncio_timeout_reaches_the_server_with_tracing_on(arity: str) -> None:
    asleep, spans = Asleep(), Spans()
    async with serving(methods(asleep), tracer=spans.tracer) as hop:
        with entered(with_seconds(LONG)), pytest.raises(TimeoutError):
            await asyncio.wait_for(finish(begin(hop.mesh, arity), arity), SOON)
        await within_bounds(asleep.ended.wait())
        await the_span(spans, SpanKind.CLIENT)
        await the_span(spans, SpanKind.SERVER)


@each_stream
async def test_cancelled_client_streams_leave_their_spans_unended_and_ours_end_with_the_true_status(arity: str) -> None:
    asleep, spans = Asleep(), Spans()
    interceptors = otel_client_interceptors(spans)
    async with plain({**methods(asleep), **quick()}, client_interceptors=interceptors) as channel:
        call = begin(channel, arity, timeout=LONG)
        async for _ in call:
            await within_bounds(asleep.began.wait())
            break
        call.cancel()
        await within_bounds(asleep.ended.wait())
        await some_round_trips(channel, "quick")
        names = {span.name for span in spans.ended(SpanKind.CLIENT)}
        if f"/{SERVICE}/{arity}" in names:
            cured("that cancelled streams leave spans unended", "`ClientSpans.end_with`")

    for way in ("cancel", "break", "read one and leave the block", "cancel the caller"):
        asleep, spans = Asleep(), Spans()
        async with serving(methods(asleep), tracer=spans.tracer) as hop:
            with entered(with_seconds(LONG)):
                call = begin(hop.mesh, arity)
                if way == "cancel":
                    await within_bounds(asleep.began.wait())
                    call.cancel()
                elif way == "break":
                    async for _ in call:
                        await within_bounds(asleep.began.wait())
                        break
                elif way == "read one and leave the block":
                    async with call:
                        await within_bounds(call.read())
                        await within_bounds(asleep.began.wait())
                else:
                    caller = asyncio.ensure_future(finish(call, arity))
                    await within_bounds(asleep.began.wait())
                    caller.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await caller
            await within_bounds(asleep.ended.wait())
            assert told(await the_span(spans, SpanKind.CLIENT)) == (StatusCode.ERROR, 1, "CANCELLED"), way
            assert told(await the_span(spans, SpanKind.SERVER)) == (StatusCode.ERROR, 1, "CLIENT_CANCELLED"), way


@each_arity
async def test_the_server_span_of_a_call_killed_by_its_deadline_says_nothing_of_it_and_ours_does(arity: str) -> None:
    asleep, spans = Asleep(), Spans()
    interceptor = otel_server_interceptor(spans)
    async with plain(methods(asleep), server_interceptors=(interceptor,)) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await within_bounds(finish(begin(channel, arity, timeout=SOON), arity))
        await within_bounds(asleep.ended.wait())
        await settled()
        ended = [told(span) for span in spans.ended(SpanKind.SERVER)]
    if ended not in ([], [(StatusCode.UNSET, 0, None)]):
        cured("that a spent deadline is not on the span", "`ServerSpan.end`")

    asleep, spans = Asleep(), Spans()
    async with serving(methods(asleep), tracer=spans.tracer) as hop:
        with entered(with_seconds(SOON)), pytest.raises(grpc.aio.AioRpcError):
            await responses(hop.mesh, arity)
        server = await the_span(spans, SpanKind.SERVER)
        client = await the_span(spans, SpanKind.CLIENT)
    assert told(server) == (StatusCode.ERROR, 4, "DEADLINE_SPENT")
    assert told(client) == (StatusCode.ERROR, 4, "DEADLINE_EXCEEDED")
    attributes = dict(server.attributes or {})
    assert (attributes["mesh.tenant_id"], attributes["mesh.tier"], attributes["mesh.run_id"]) == (
        *("acme", "free", "run-1"),
    )
    remaining = attributes["deadline.remaining_ms"]
    assert isinstance(remaining, float)
    assert 0 < remaining <= SOON * 1000


@each_stream
async def test_the_span_of_a_stream_that_its_own_scope_cuts_at_the_deadline_names_the_deadline(arity: str) -> None:
    asleep, spans = Asleep(), Spans()
    async with serving(methods(asleep), tracer=spans.tracer) as hop:
        with pytest.raises(DeadlineSpent):
            await in_a_scope(SOON, lambda: responses(hop.mesh, arity))
        code, _, error = told(await the_span(spans, SpanKind.CLIENT))
    assert code is StatusCode.ERROR
    assert str(error).startswith("DEADLINE_")


@each_arity
async def test_abort_records_its_exception_twice_and_ours_none(arity: str) -> None:
    async def aborts(request: bytes, context: Any) -> bytes:
        await context.abort(grpc.StatusCode.NOT_FOUND, "no such tool")
        return b""

    spans = Spans()
    interceptor = otel_server_interceptor(spans)
    async with plain(methods(aborts), server_interceptors=(interceptor,)) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await within_bounds(finish(begin(channel, arity, timeout=LONG), arity))
        span = await the_span(spans, SpanKind.SERVER)
    if len([event for event in span.events if event.name == "exception"]) < 2:
        cured("that abort is recorded twice", "closing the span before aborting")

    async def fails(request: bytes, context: Any) -> bytes:
        raise NotFound([Violation("tool", "unknown")])

    spans = Spans()
    async with serving(methods(fails), tracer=spans.tracer) as hop:
        with entered(with_seconds(LONG)), pytest.raises(grpc.aio.AioRpcError):
            await responses(hop.mesh, arity)
        span = await the_span(spans, SpanKind.SERVER)
    assert span.events == ()
    assert told(span) == (StatusCode.ERROR, 5, "NOT_FOUND")
    assert span.status.description == "tool: unknown"


@each_arity
async def test_a_handler_that_aborts_by_itself_gets_a_span_with_the_status_it_wrote(arity: str) -> None:
    async def aborts(request: bytes, context: Any) -> bytes:
        await context.abort(grpc.StatusCode.ALREADY_EXISTS, "twice")
        return b""

    spans = Spans()
    async with serving(methods(aborts), tracer=spans.tracer) as hop:
        with entered(with_seconds(LONG)), pytest.raises(grpc.aio.AioRpcError):
            await responses(hop.mesh, arity)
        span = await the_span(spans, SpanKind.SERVER)
    assert told(span) == (StatusCode.ERROR, 6, "ALREADY_EXISTS")
    assert len([event for event in span.events if event.name == "exception"]) <= 1


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")  # the package iterates what it should await
async def test_contrib_3066_handlers_that_read_and_write_fail_and_ours_do_not() -> None:
    async def writes(request: bytes, context: Any) -> None:
        await context.write(b"re: " + request)

    async def reads_and_writes(requests: Any, context: Any) -> None:
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(b"re: " + request)

    handlers = {
        "unary_stream": handler("unary_stream", writes),
        "stream_stream": handler("stream_stream", reads_and_writes),
    }
    interceptor = otel_server_interceptor(Spans())
    async with plain(handlers, server_interceptors=(interceptor,)) as channel:
        for arity in STREAMING:
            call = begin(channel, arity, timeout=LONG)
            with suppress(grpc.aio.AioRpcError):
                await within_bounds(finish(call, arity))
            if await call.code() is grpc.StatusCode.OK:
                cured("contrib 3066", "opening server spans in our own interceptor")

    spans = Spans()
    async with serving(handlers, tracer=spans.tracer) as hop:
        with entered(with_seconds(LONG)):
            assert await responses(hop.mesh, "unary_stream") == [b"re: ask"]
            assert await responses(hop.mesh, "stream_stream") == [b"re: a", b"re: sk"]
        await hop.facts.see(CallEnded, 2)
    assert [told(span) for span in spans.ended(SpanKind.SERVER)] == [(StatusCode.UNSET, 0, None)] * 2


@each_stream
async def test_contrib_2357_generators_that_are_cut_fail_to_detach_their_context_and_ours_do_not(
    arity: str, caplog: pytest.LogCaptureFixture
) -> None:
    def failures() -> list[str]:
        return [record.getMessage() for record in caplog.records if "detach" in record.getMessage()]

    wrote, ended = asyncio.Event(), asyncio.Event()

    async def floods(request: Any, context: Any) -> AsyncIterator[bytes]:
        try:
            while True:  # more than the client reads, so that the cut comes in the middle of a write
                yield bytes(1 << 20)
                wrote.set()
        finally:
            ended.set()

    handlers = {arity: handler(arity, floods)}
    with caplog.at_level(logging.ERROR):
        async with plain(handlers, server_interceptors=(otel_server_interceptor(Spans()),)) as channel:
            call = begin(channel, arity, requests=(), timeout=LONG)
            await within_bounds(wrote.wait())
            call.cancel()
            while not ended.is_set():
                await settled()
            await settled()
        raw_failures = failures()
        caplog.clear()

        wrote, ended, spans = asyncio.Event(), asyncio.Event(), Spans()
        async with serving(handlers, tracer=spans.tracer) as hop:
            with entered(with_seconds(LONG)):
                call = begin(hop.mesh, arity, requests=())
                await within_bounds(wrote.wait())
                call.cancel()
            await within_bounds(ended.wait())
            await hop.facts.see(CallEnded)
            assert told(await the_span(spans, SpanKind.SERVER)) == (StatusCode.ERROR, 1, "CLIENT_CANCELLED")
            await settled()
        assert caplog.records == []
    if not raw_failures:
        cured("contrib 2357", "opening server spans in our own interceptor")


@each_arity
async def test_a_trace_goes_on_from_hop_to_hop_and_the_handlers_own_spans_are_children(arity: str) -> None:
    spans = Spans()

    async def works(request: bytes, context: Any) -> bytes:
        with spans.tracer.start_as_current_span("work"):
            return b"done"

    async with serving(methods(works), tracer=spans.tracer) as hop:
        with entered(with_seconds(LONG)):
            await responses(hop.mesh, arity)
        server = await the_span(spans, SpanKind.SERVER)
        client = await the_span(spans, SpanKind.CLIENT)
        work = spans.the(SpanKind.INTERNAL)
    assert server.parent is not None
    assert client.context is not None
    assert work.parent is not None
    assert server.parent.span_id == client.context.span_id
    assert server.context is not None
    assert work.parent.span_id == server.context.span_id
    assert len({span.context.trace_id for span in (server, client, work) if span.context}) == 1
    assert trace.get_current_span() is trace.INVALID_SPAN


async def test_a_call_that_cannot_even_be_begun_ends_its_span() -> None:
    spans = Spans()
    channel = mesh_channel("127.0.0.1:1", mesh_token=TOKEN, message_bytes=1024, tracer=spans.tracer)
    await channel.close()
    with entered(with_seconds(LONG)), pytest.raises(grpc.aio.UsageError):
        begin(channel, "unary_unary")
    assert spans.the(SpanKind.CLIENT).status.status_code is StatusCode.ERROR


@each_arity
async def test_every_cause_that_ends_a_call_is_on_its_span(arity: str) -> None:
    asleep, spans = Asleep(), Spans()
    async with serving(methods(asleep), tracer=spans.tracer, drain=0.0) as hop:
        with entered(with_seconds(LONG)):
            call = begin(hop.mesh, arity)
            ending = asyncio.ensure_future(finish(call, arity))
            await within_bounds(asleep.began.wait())
            await within_bounds(hop.server.drain())
        with pytest.raises(grpc.aio.AioRpcError):
            await ending
        assert told(await the_span(spans, SpanKind.SERVER)) == (StatusCode.ERROR, 14, Cause.DRAINING.value)
        assert told(await the_span(spans, SpanKind.CLIENT)) == (StatusCode.ERROR, 14, "UNAVAILABLE")
