"""Deadlines, causes and cancels over real servers and sockets."""

from __future__ import annotations

import asyncio
import socket
import weakref
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.support.rpc import (
    ARITIES,
    SERVICE,
    STREAMING,
    TOKEN,
    Asleep,
    begin,
    error_info,
    expected,
    finish,
    handler,
    in_a_scope,
    methods,
    responses,
    serving,
    with_seconds,
    within_bounds,
)

from deadlinemesh.deadline import SYSTEM_CLOCK, current, entered
from deadlinemesh.errors import (
    Cause,
    ClientCancelled,
    DeadlineSpent,
    DeadlineSpentUpstream,
    Draining,
    InternalFailure,
    InvalidRequest,
    MeshError,
    NoDeadline,
    NotFound,
    Shed,
    TooLarge,
    Unauthenticated,
    UpstreamFailed,
    Violation,
)
from deadlinemesh.telemetry import CallEnded, CallRefused, CallStarted, MalformedRemaining, OrphanReported
from deadlinemesh.transport import (
    DeadlineInterceptor,
    MeshChannel,
    MeshGate,
    MeshServer,
    ServerSettings,
    error_from,
    wire,
)
from deadlinemesh.transport.server import LIVENESS
from deadlinemesh.transport.status import code_of

SOON = 0.4
"""Seconds of deadlines that are meant to pass, but not before the handler has begun."""
LONG = 60.0
"""Seconds of deadlines that are not."""
CLOCKS = 0.001
"""Seconds that the core's clock, the wall's, and asyncio's may be apart."""

each_arity = pytest.mark.parametrize("arity", ARITIES)
each_stream = pytest.mark.parametrize("arity", STREAMING)


def stamped(seconds: float, *, token: str = TOKEN, remaining: str | None = None) -> list[tuple[str, str]]:
    """A call's metadata, written by hand for a plain channel."""
    metadata = dict(wire.encode(with_seconds(seconds), max(0.0, seconds), token))
    if remaining is not None:
        metadata[wire.REMAINING_US] = remaining
    return list(metadata.items())


async def failure(call: Any, arity: str) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await within_bounds(finish(call, arity))
    return raised.value


# --- four arities, four ends ---


@each_arity
async def test_a_call_is_answered(arity: str) -> None:
    async with serving(methods()) as hop:
        with entered(with_seconds(LONG)):
            assert await responses(hop.mesh, arity) == expected(arity)
        ended = await hop.facts.see(CallEnded)
    assert (ended.code, ended.cause, ended.tenant_id, ended.tier, ended.run_id) == ("OK", "", "acme", "free", "run-1")
    assert (ended.hop, ended.method) == ("hop-a", f"/{SERVICE}/{arity}")
    assert [type(event) for event in hop.facts.events] == [CallStarted, CallEnded]
    assert len(hop.interceptor.scopes) == 0


@each_arity
async def test_a_call_ends_on_both_sides_at_its_deadline(arity: str) -> None:
    asleep = Asleep()
    async with serving(methods(asleep)) as hop:
        with entered(with_seconds(SOON)) as context:
            error = await failure(begin(hop.mesh, arity), arity)
            assert context.is_expired or context.remaining < 0.005
        await within_bounds(asleep.ended.wait())
        ended = await hop.facts.see(CallEnded)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert (ended.code, ended.cause) == ("DEADLINE_EXCEEDED", Cause.DEADLINE_SPENT)
    assert ended.ended_at >= ended.deadline_at - 1e-6


@each_arity
async def test_a_hop_sends_the_status_of_its_spent_deadline_even_where_the_caller_has_no_timer(arity: str) -> None:
    async with serving(methods(Asleep())) as hop:
        error = await failure(begin(hop.raw, arity, metadata=stamped(SOON)), arity)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    metadata = error_info(error)
    assert (metadata["reason"], metadata["hop"]) == ("DEADLINE_SPENT", "hop-a")
    assert 0 < float(metadata["granted_ms"]) <= SOON * 1000
    assert float(metadata["elapsed_ms"]) >= float(metadata["granted_ms"])
    assert isinstance(error_from(error, "hop-a"), DeadlineSpentUpstream)


@each_arity
async def test_a_cancelled_call_ends_its_handler(arity: str) -> None:
    asleep = Asleep()
    async with serving(methods(asleep)) as hop:
        with entered(with_seconds(LONG)):
            call = begin(hop.mesh, arity)
            finishing = asyncio.ensure_future(finish(call, arity))
            await within_bounds(asleep.began.wait())
            call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within_bounds(finishing)
        await within_bounds(asleep.ended.wait())
        ended = await hop.facts.see(CallEnded)
    assert (ended.code, ended.cause) == ("CANCELLED", Cause.CLIENT_CANCELLED)


@each_arity
async def test_a_cancelled_caller_ends_its_call_and_the_calls_handler(arity: str) -> None:
    asleep = Asleep()
    async with serving(methods(asleep)) as hop:
        with entered(with_seconds(LONG)):
            caller = asyncio.create_task(responses(hop.mesh, arity))
        await within_bounds(asleep.began.wait())
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        await within_bounds(asleep.ended.wait())
        ended = await hop.facts.see(CallEnded)
    assert ended.cause == Cause.CLIENT_CANCELLED


@each_arity
async def test_an_error_arrives_as_what_it_is_with_the_hop_it_came_from(arity: str) -> None:
    async def fails(request: bytes, context: Any) -> bytes:
        raise NotFound([Violation("tool", "unknown: one of a, b")])

    async with serving(methods(fails)) as hop:
        with entered(with_seconds(LONG)):
            error = await failure(begin(hop.mesh, arity), arity)
        ended = await hop.facts.see(CallEnded)
    arrived = error_from(error, "an upstream")
    assert isinstance(arrived, NotFound)
    assert (arrived.violations, arrived.hop) == ((Violation("tool", "unknown: one of a, b"),), "hop-a")
    assert (ended.code, ended.cause) == ("NOT_FOUND", "")


@each_arity
async def test_a_bug_is_logged_here_and_told_to_the_caller_without_its_secrets(
    arity: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails(request: bytes, context: Any) -> bytes:
        raise LookupError("password=hunter2")

    async with serving(methods(fails)) as hop:
        with entered(with_seconds(LONG)):
            error = await failure(begin(hop.mesh, arity), arity)
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "hunter2" not in str(error.details())
    assert isinstance(error_from(error, "hop-a"), InternalFailure)
    assert "hunter2" in caplog.text


@each_arity
async def test_a_handler_that_writes_its_own_status_is_left_to_it(arity: str) -> None:
    async def aborts(request: bytes, context: Any) -> bytes:
        await context.abort(grpc.StatusCode.ALREADY_EXISTS, "twice")
        return b""

    async with serving(methods(aborts)) as hop:
        with entered(with_seconds(LONG)):
            error = await failure(begin(hop.mesh, arity), arity)
        ended = await hop.facts.see(CallEnded)
    assert (error.code(), error.details()) == (grpc.StatusCode.ALREADY_EXISTS, "twice")
    assert ended.code == "ALREADY_EXISTS"


async def test_an_upstreams_failed_call_is_not_taken_for_a_bug_of_ours() -> None:
    async with serving(methods(Asleep())) as inner:

        async def calls_on(request: bytes, context: Any) -> bytes:
            return bytes(await begin(inner.mesh, "unary_unary", timeout=SOON))

        async with serving(methods(calls_on)) as outer:
            with entered(with_seconds(LONG)):
                error = await failure(begin(outer.mesh, "unary_unary"), "unary_unary")
    arrived = error_from(error, "hop-a")
    assert isinstance(arrived, DeadlineSpentUpstream)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_method_that_does_not_exist_is_unimplemented() -> None:
    async with serving(methods()) as hop:
        with entered(with_seconds(LONG)):
            error = await failure(begin(hop.mesh, "unary_unary", "nothing"), "unary_unary")
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


@each_arity
async def test_a_handler_that_reports_somebody_elses_cancel_still_sends_its_status(arity: str) -> None:
    async def was_cancelled_elsewhere(request: bytes, context: Any) -> bytes:
        raise ClientCancelled("the run was cancelled by another call")

    async with serving(methods(was_cancelled_elsewhere)) as hop:
        with entered(with_seconds(LONG)):
            error = await failure(begin(hop.mesh, arity), arity)
    assert error.code() is grpc.StatusCode.CANCELLED
    assert isinstance(error_from(error, "hop-a"), ClientCancelled)


# --- handlers that will not end ---


@each_arity
async def test_the_client_of_a_handler_that_will_not_end_is_answered_all_the_same(arity: str) -> None:
    let_go = asyncio.Event()

    async def stubborn(request: bytes, context: Any) -> bytes:
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue
        return b""

    async with serving(methods(stubborn)) as hop:
        error = await failure(begin(hop.raw, arity, metadata=stamped(SOON)), arity)
        orphan = await hop.facts.see(OrphanReported)
        assert len(hop.interceptor.scopes) == 1
        let_go.set()
        ended = await hop.facts.see(CallEnded)
        await within_bounds(hop.interceptor.scopes.emptied())
    assert (error.code(), error_info(error)["reason"]) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_SPENT")
    assert (orphan.hop, orphan.tenant_id, orphan.run_id) == ("hop-a", "acme", "run-1")
    assert " at " in orphan.task
    assert 0.22 < orphan.age < 10.0
    assert (ended.code, ended.cause) == ("DEADLINE_EXCEEDED", Cause.DEADLINE_SPENT)


@each_arity
async def test_a_good_answer_is_not_spoilt_by_a_stubborn_task_that_was_left_behind(arity: str) -> None:
    let_go = asyncio.Event()

    async def stubborn() -> None:
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue

    async def leaves_one_behind(request: bytes, context: Any) -> bytes:
        asyncio.ensure_future(stubborn())  # noqa: RUF006 # the scope holds it
        await asyncio.sleep(0)
        return b"re: " + request

    async with serving(methods(leaves_one_behind)) as hop:
        with entered(with_seconds(LONG)):
            assert await responses(hop.mesh, arity) == expected(arity)
        await hop.facts.see(OrphanReported)
        let_go.set()
        await within_bounds(hop.interceptor.scopes.emptied())


# --- exactness ---


async def test_the_exact_deadline_arrives_whatever_the_core_makes_of_the_timeout() -> None:
    async def tell(request: bytes, context: Any) -> bytes:
        return repr(current().absolute_deadline).encode()

    async with serving(methods(tell)) as hop:
        for seconds in (10.3, 10.0, 97.1, 1.001, 100.1, 59.999):
            with entered(with_seconds(seconds)) as context:
                began = SYSTEM_CLOCK.monotonic()
                arrived = float(await within_bounds(begin(hop.mesh, "unary_unary")))
                took = SYSTEM_CLOCK.monotonic() - began
            assert -CLOCKS <= arrived - context.absolute_deadline <= took


async def test_over_six_hops_a_deadline_moves_by_no_more_than_the_transit() -> None:
    seen: list[float] = []

    async def calls_on(request: bytes, context: Any) -> bytes:
        seen.append(current().absolute_deadline)
        return bytes(await begin(hop.mesh, "unary_unary")) if len(seen) < 6 else b""

    async with serving(methods(calls_on)) as hop:
        with entered(with_seconds(97.1)) as context:
            began = SYSTEM_CLOCK.monotonic()
            await within_bounds(begin(hop.mesh, "unary_unary"))
            took = SYSTEM_CLOCK.monotonic() - began
    drifts = [deadline - context.absolute_deadline for deadline in seen]
    assert len(drifts) == 6
    assert all(-CLOCKS <= drift <= took for drift in drifts)


async def test_a_calls_own_timeout_narrows_and_never_extends() -> None:
    async def tell(request: bytes, context: Any) -> bytes:
        return repr(current().granted).encode()

    async with serving(methods(tell)) as hop:
        with entered(with_seconds(LONG)):
            assert float(await within_bounds(begin(hop.mesh, "unary_unary", timeout=10.0))) <= 10.0
            assert float(await within_bounds(begin(hop.mesh, "unary_unary", timeout=900.0))) <= LONG


@pytest.mark.parametrize("malformed", ["soon", "-5", "1.5", "", "9" * 17])
async def test_a_malformed_rest_is_ignored_and_told_of(malformed: str) -> None:
    async def tell(request: bytes, context: Any) -> bytes:
        return repr(current().granted).encode()

    async with serving(methods(tell)) as hop:
        metadata = stamped(5.0, remaining=malformed)
        granted = float(await within_bounds(begin(hop.raw, "unary_unary", metadata=metadata, timeout=LONG)))
        told = await hop.facts.see(MalformedRemaining)
    assert 5.0 < granted < LONG * 1.04
    assert (told.hop, told.method, told.value) == ("hop-a", f"/{SERVICE}/unary_unary", repr(malformed))


# --- the door ---


@each_arity
async def test_a_call_without_a_deadline_is_refused_before_its_handler_runs(arity: str) -> None:
    asleep = Asleep()
    async with serving(methods(asleep)) as hop:
        metadata = [(key, value) for key, value in stamped(LONG) if key != wire.REMAINING_US]
        error = await failure(begin(hop.raw, arity, requests=(), metadata=metadata), arity)
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert isinstance(error_from(error, "hop-a"), NoDeadline)
    assert "set the call's timeout" in str(error.details())
    assert not asleep.began.is_set()


@pytest.mark.parametrize("token", ["", "wrong", TOKEN + "x"])
@each_arity
async def test_a_stranger_is_refused_before_the_handler_runs(arity: str, token: str) -> None:
    asleep = Asleep()
    async with serving(methods(asleep)) as hop:
        metadata = stamped(LONG, token=token)
        error = await failure(begin(hop.raw, arity, requests=(), metadata=metadata, timeout=LONG), arity)
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    assert isinstance(error_from(error, "hop-a"), Unauthenticated)
    assert not asleep.began.is_set()
    (refused,) = hop.facts.seen(CallRefused)
    assert (refused.hop, refused.code, refused.reason) == ("hop-a", "UNAUTHENTICATED", "UNAUTHENTICATED")
    assert hop.facts.seen(CallStarted) == hop.facts.seen(CallEnded) == []


@pytest.mark.parametrize("token", ["", "a;b", "geheimni\u00df", "two\nlines"])
async def test_a_secret_that_cannot_travel_is_refused_at_both_ends(token: str) -> None:
    with pytest.raises(ValueError, match="printable ASCII without `;`, and not empty"):
        MeshGate("hop-a", token)
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        with pytest.raises(ValueError, match="printable ASCII without `;`, and not empty"):
            MeshChannel(channel, token)


@each_arity
async def test_a_call_that_arrives_expired_is_refused_before_its_handler_runs(arity: str) -> None:
    asleep = Asleep()
    async with serving(methods(asleep)) as hop:
        error = await failure(begin(hop.raw, arity, requests=(), metadata=stamped(LONG, remaining="0")), arity)
    assert error_info(error)["reason"] == "DEADLINE_SPENT"
    assert not asleep.began.is_set()


@each_arity
async def test_a_call_without_a_current_context_raises_before_anything_is_sent(arity: str) -> None:
    async with serving(methods()) as hop:
        with pytest.raises(NoDeadline):
            begin(hop.mesh, arity)
        with entered(with_seconds(LONG)):
            await responses(hop.mesh, "unary_unary")
        await hop.facts.see(CallEnded)
    assert len(hop.facts.seen(CallStarted)) == 1


@each_arity
async def test_a_call_whose_time_is_spent_raises_before_anything_is_sent(arity: str) -> None:
    async with serving(methods()) as hop:
        with entered(with_seconds(0.0)), pytest.raises(DeadlineSpent, match=f"no time is left to call /{SERVICE}"):
            begin(hop.mesh, arity)
        with entered(with_seconds(LONG)):
            with pytest.raises(DeadlineSpent):
                begin(hop.mesh, arity, timeout=0.0)
            await responses(hop.mesh, "unary_unary")
        await hop.facts.see(CallEnded)
    assert len(hop.facts.seen(CallStarted)) == 1


# --- streams that are left ---


@each_stream
async def test_leaving_a_stream_by_a_plain_break_cancels_it(arity: str) -> None:
    asleep = Asleep()
    async with serving(methods(asleep)) as hop:
        with entered(with_seconds(LONG)):
            call = begin(hop.mesh, arity)
            async for _ in call:
                await within_bounds(asleep.began.wait())
                break
        await within_bounds(asleep.ended.wait())
        assert (await hop.facts.see(CallEnded)).cause == Cause.CLIENT_CANCELLED


@each_stream
async def test_leaving_the_block_around_a_stream_cancels_it(arity: str) -> None:
    asleep = Asleep()
    async with serving(methods(asleep)) as hop:
        with entered(with_seconds(LONG)):
            async with begin(hop.mesh, arity) as call:
                assert await within_bounds(call.read()) == b"first"
                await within_bounds(asleep.began.wait())
        await within_bounds(asleep.ended.wait())
        assert (await hop.facts.see(CallEnded)).cause == Cause.CLIENT_CANCELLED


@each_stream
async def test_an_error_in_the_loop_over_a_stream_cancels_it(arity: str) -> None:
    asleep = Asleep()

    async def consume(call: Any) -> None:
        async for _ in call:
            await within_bounds(asleep.began.wait())
            raise LookupError

    async with serving(methods(asleep)) as hop:
        with entered(with_seconds(LONG)), pytest.raises(LookupError):
            await consume(begin(hop.mesh, arity))
        await within_bounds(asleep.ended.wait())


@each_stream
async def test_a_stream_that_is_forgotten_ends_with_the_scope_it_was_begun_in(arity: str) -> None:
    asleep = Asleep()
    kept: list[Any] = []
    async with serving(methods(asleep)) as hop:

        async def forgets() -> str:
            kept.append(begin(hop.mesh, arity))
            assert await within_bounds(kept[0].read()) == b"first"
            await within_bounds(asleep.began.wait())
            return "done"

        assert await in_a_scope(LONG, forgets) == "done"
        await within_bounds(asleep.ended.wait())
        assert (await hop.facts.see(CallEnded)).cause == Cause.CLIENT_CANCELLED


@each_arity
async def test_the_calls_of_a_cancelled_handler_end_all_the_way_down(arity: str) -> None:
    asleep = Asleep()
    async with serving(methods(asleep)) as inner:

        async def calls_on(request: bytes, context: Any) -> bytes:
            return b"".join(await responses(inner.mesh, arity))

        async with serving(methods(calls_on)) as outer:
            with entered(with_seconds(LONG)):
                call = begin(outer.mesh, "unary_unary")
                await within_bounds(asleep.began.wait())
                call.cancel()
            await within_bounds(asleep.ended.wait())
            assert (await inner.facts.see(CallEnded)).cause == Cause.CLIENT_CANCELLED
            assert (await outer.facts.see(CallEnded)).cause == Cause.CLIENT_CANCELLED


@each_arity
async def test_a_call_nobody_waits_for_ends_with_the_scope_it_was_begun_in(arity: str) -> None:
    asleep = Asleep()
    kept: list[Any] = []
    async with serving(methods(asleep)) as hop:

        async def forgets() -> None:
            kept.append(begin(hop.mesh, arity))
            await within_bounds(asleep.began.wait())

        await in_a_scope(LONG, forgets)
        await within_bounds(asleep.ended.wait())


# --- a server's life ---


async def check(channel: grpc.aio.Channel, service: str) -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    response: health_pb2.HealthCheckResponse = await within_bounds(
        stub.Check(health_pb2.HealthCheckRequest(service=service))
    )
    return response.status


async def test_health_is_told_overall_for_each_service_and_for_the_event_loop() -> None:
    async with serving(methods()) as hop:
        for service in ("", SERVICE, LIVENESS):
            assert await check(hop.raw, service) == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await check(hop.raw, "test.v1.Unknown")
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


async def test_reflection_lists_the_services() -> None:
    async def ask() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")

    async with serving(methods()) as hop:
        channel: Any = hop.raw
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        answers = [answer async for answer in stub.ServerReflectionInfo(ask())]
    names = {service.name for answer in answers for service in answer.list_services_response.service}
    assert names == {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


async def test_port_0_gives_a_free_port_and_says_which() -> None:
    async with serving(methods()) as first, serving(methods()) as second:
        assert 0 < first.server.port != second.server.port > 0


async def test_a_port_that_is_taken_is_a_clear_os_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        server = MeshServer(ServerSettings(listen), DeadlineInterceptor("hop-a", MeshGate("hop-a", TOKEN)), [])
        with pytest.raises(OSError, match=f"cannot listen on {listen}: is it taken"):
            await server.start()


@pytest.mark.parametrize("listen", ["", "50051", ":50051", "host:", "host:port"])
def test_an_address_that_is_none_is_refused_with_an_example(listen: str) -> None:
    with pytest.raises(ValueError, match=r"is not HOST:PORT, such as 0\.0\.0\.0:50051"):
        ServerSettings(listen)


async def test_a_drain_lets_calls_in_flight_finish_and_takes_nothing_new() -> None:
    began, go_on = asyncio.Event(), asyncio.Event()

    async def waits(request: bytes, context: Any) -> bytes:
        began.set()
        await go_on.wait()
        return b"finished"

    async with serving(methods(waits)) as hop:
        with entered(with_seconds(LONG)):
            in_flight = asyncio.ensure_future(responses(hop.mesh, "unary_unary"))
            await within_bounds(began.wait())
            draining = asyncio.create_task(hop.server.drain())
            while await check(hop.raw, "") == health_pb2.HealthCheckResponse.SERVING:
                pass
            refused = await failure(begin(hop.mesh, "unary_unary"), "unary_unary")
        assert refused.code() is grpc.StatusCode.UNAVAILABLE
        assert isinstance(error_from(refused, "hop-a"), Draining)
        assert await check(hop.raw, "") == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await check(hop.raw, SERVICE) == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await check(hop.raw, LIVENESS) == health_pb2.HealthCheckResponse.SERVING
        assert not draining.done()
        go_on.set()
        assert await in_flight == [b"finished"]
        await within_bounds(draining)


@each_arity
async def test_a_drain_that_takes_too_long_ends_the_rest_with_its_cause(arity: str) -> None:
    asleep = Asleep()
    async with serving(methods(asleep), drain=0.05) as hop:
        with entered(with_seconds(LONG)):
            call = begin(hop.mesh, arity)
            ending = asyncio.ensure_future(failure(call, arity))
            await within_bounds(asleep.began.wait())
            await within_bounds(hop.server.drain())
        error = await ending
        ended = await hop.facts.see(CallEnded)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert isinstance(error_from(error, "hop-a"), Draining)
    assert (ended.code, ended.cause) == ("UNAVAILABLE", Cause.DRAINING)
    assert asleep.ended.is_set()


async def test_a_server_with_a_handler_that_will_not_end_stops_all_the_same() -> None:
    began, let_go = asyncio.Event(), asyncio.Event()

    async def stubborn(request: bytes, context: Any) -> bytes:
        began.set()
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue
        return b""

    async with serving(methods(stubborn), drain=0.05) as hop:
        with entered(with_seconds(LONG)):
            call = begin(hop.mesh, "unary_unary")
        await within_bounds(began.wait())
        await within_bounds(hop.server.drain())
        error = await failure(call, "unary_unary")
        assert isinstance(error_from(error, "hop-a"), Draining)
        assert len(hop.facts.seen(OrphanReported)) == 1
        let_go.set()
        await within_bounds(hop.interceptor.scopes.emptied())


@pytest.mark.parametrize("direction", ["request", "response"])
async def test_a_message_beyond_the_limit_is_refused_with_the_limit(direction: str) -> None:
    limit = 1000

    async def big(request: bytes, context: Any) -> bytes:
        return bytes(2 * limit) if direction == "response" else b""

    async with serving(methods(big), message_bytes=limit) as hop:
        with entered(with_seconds(LONG)):
            invoke = hop.mesh.unary_unary(f"/{SERVICE}/unary_unary")
            error = await failure(invoke(bytes(2 * limit if direction == "request" else 1)), "unary_unary")
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(limit) in str(error.details())
    assert isinstance(error_from(error, "hop-a"), TooLarge)


async def test_handlers_may_read_and_write_in_their_own_time() -> None:
    async def reads_and_writes(requests: Any, context: Any) -> None:
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(b"re: " + request)

    async with serving({"stream_stream": handler("stream_stream", reads_and_writes)}) as hop:
        with entered(with_seconds(LONG)):
            assert await responses(hop.mesh, "stream_stream") == [b"re: a", b"re: sk"]


async def test_hundreds_of_calls_that_expire_together_are_all_gone_and_none_is_an_orphan() -> None:
    calls = 300
    async with serving(methods(Asleep())) as hop:
        with entered(with_seconds(1.0)):
            begun = [begin(hop.mesh, "unary_unary") for _ in range(calls)]
            outcomes = await within_bounds(asyncio.gather(*begun, return_exceptions=True))
        assert {outcome.code() for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)} == {
            grpc.StatusCode.DEADLINE_EXCEEDED
        }
        await within_bounds(hop.interceptor.scopes.emptied())
        assert hop.facts.seen(OrphanReported) == []
        # Under such a burst a peer's timer may come many milliseconds before ours, and no sign tells it from a cancel.
        assert {ended.cause for ended in hop.facts.seen(CallEnded)} <= {Cause.DEADLINE_SPENT, Cause.CLIENT_CANCELLED}


async def test_a_caller_whose_scope_ends_is_told_its_own_cause() -> None:
    async with serving(methods(Asleep())) as hop:
        with pytest.raises(DeadlineSpent):
            await in_a_scope(SOON, lambda: responses(hop.mesh, "unary_stream"))
        caller = asyncio.create_task(in_a_scope(LONG, lambda: responses(hop.mesh, "unary_stream")))
        await hop.facts.see(CallStarted, 2)
        caller.cancel()
        with pytest.raises((ClientCancelled, asyncio.CancelledError)):
            await within_bounds(caller)
        await hop.facts.see(CallEnded, 2)


@pytest.mark.parametrize(
    "error",
    [
        UpstreamFailed("x" * 20_000),
        UpstreamFailed("é" * 20_000),
        UpstreamFailed("x" * 5_000_000),
        UpstreamFailed("\ud83d"),
        InvalidRequest([Violation(f"messages[{n}].tool_calls", "must be a JSON object" * 5) for n in range(500)]),
        InvalidRequest([Violation("ё" * 9_000, "ё" * 9_000)]),
        Shed("later", retry_after=float("inf")),
    ],
    ids=["long", "long-in-utf-8", "longer-than-a-message", "surrogate", "many-violations", "long-violation", "endless"],
)
@pytest.mark.parametrize("arity", ["unary_unary", "unary_stream"])
async def test_an_error_keeps_its_cause_however_much_it_says(arity: str, error: MeshError) -> None:
    async def fail(request: bytes, context: Any) -> bytes:
        raise error

    async with serving(methods(fail)) as served:
        with entered(with_seconds(20)), pytest.raises(grpc.aio.AioRpcError) as raised:
            await responses(served.mesh, arity)
    arrived = error_from(raised.value, "hop-a")
    assert (raised.value.code(), type(arrived)) == (code_of(error), type(error))


class Request:
    """A message that can be watched."""


@pytest.mark.parametrize("arity", ["unary_unary", "unary_stream"])
async def test_request_is_not_held_once_its_handler_has_let_go(arity: str) -> None:
    """A run lasts for minutes, and its request may have megabytes."""
    requests: list[weakref.ref[Request]] = []

    def parsed(raw: bytes) -> Request:
        request = Request()
        requests.append(weakref.ref(request))
        return request

    async def one(request: Request, context: Any) -> bytes:
        del request
        await asyncio.sleep(0)
        return b"held" if requests[-1]() else b"gone"

    async def many(request: Request, context: Any) -> AsyncIterator[bytes]:
        del request
        await asyncio.sleep(0)
        yield b"held" if requests[-1]() else b"gone"

    methods: dict[str, Any] = {
        "unary_unary": grpc.unary_unary_rpc_method_handler(one, request_deserializer=parsed),
        "unary_stream": grpc.unary_stream_rpc_method_handler(many, request_deserializer=parsed),
    }
    async with serving(methods) as hop:
        with entered(with_seconds(LONG)):
            assert await responses(hop.mesh, arity) == [b"gone"]
