"""The mesh in memory behaves as grpc.aio does over sockets, on a clock that jumps."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import grpc
import pytest
from tests.support.rpc import (
    ARITIES,
    STREAMING,
    TOKEN,
    Act,
    Facts,
    begin,
    error_info,
    expected,
    finish,
    handler,
    methods,
    register,
)
from tests.support.virtual import in_virtual_time, now, with_seconds

from deadlinemesh.deadline import current, entered
from deadlinemesh.errors import Cause, DeadlineSpentUpstream, NoDeadline, NotFound, Unauthenticated, Violation
from deadlinemesh.telemetry import CallEnded, OrphanReported, Telemetry
from deadlinemesh.testing import virtual_time
from deadlinemesh.testing.memory import MemoryChannel, MemoryServer
from deadlinemesh.transport import DeadlineInterceptor, MeshChannel, MeshGate, error_from
from deadlinemesh.transport.wire import LEAST_TRANSIT

each_arity = pytest.mark.parametrize("arity", ARITIES)
each_stream = pytest.mark.parametrize("arity", STREAMING)


class Hop:
    """A hop in memory and a channel to it."""

    def __init__(
        self,
        handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]],
        *,
        token: str = TOKEN,
        transit: float = 0.0,
        rounding: float = 1.0,
    ) -> None:
        self.facts = Facts()
        clock = virtual_time.clock()
        self.interceptor = DeadlineInterceptor(
            "hop-a", MeshGate("hop-a", TOKEN, clock), clock=clock, telemetry=Telemetry([self.facts])
        )
        server = MemoryServer(self.interceptor)
        register(server, handlers)
        self.raw = MemoryChannel(server, transit=transit, rounding=rounding)
        self.mesh = MeshChannel(self.raw, token)

    async def responses(self, arity: str, **options: Any) -> list[bytes]:
        return await finish(begin(self.mesh, arity, **options), arity)

    async def failure(self, arity: str, **options: Any) -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await self.responses(arity, **options)
        return raised.value


class AsleepSince:
    """Work that never ends by itself and tells when it was ended."""

    def __init__(self) -> None:
        self.ended: list[float] = []

    async def __call__(self, request: bytes, context: Any) -> bytes:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.ended.append(now())
        return b""


def failing(error: Exception) -> Act:
    async def fails(request: bytes, context: Any) -> bytes:
        raise error

    return fails


@each_arity
@in_virtual_time
async def test_a_call_is_answered(arity: str) -> None:
    hop = Hop(methods())
    with entered(with_seconds(10.0)):
        assert await hop.responses(arity) == expected(arity)
    assert (await hop.facts.see(CallEnded)).code == "OK"
    assert len(hop.interceptor.scopes) == 0


@each_arity
@in_virtual_time
async def test_both_sides_of_a_call_end_at_the_exact_deadline(arity: str) -> None:
    asleep = AsleepSince()
    hop = Hop(methods(asleep))
    with entered(with_seconds(10.0)):
        error = await hop.failure(arity)
    assert now() == pytest.approx(10.0 - LEAST_TRANSIT)
    ended = await hop.facts.see(CallEnded)
    assert asleep.ended == pytest.approx([10.0 - LEAST_TRANSIT], abs=1e-5)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert (ended.code, ended.cause) == ("DEADLINE_EXCEEDED", Cause.DEADLINE_SPENT)


@pytest.mark.parametrize("rounding", [1.0, 1.001, 1.03])
@each_arity
@in_virtual_time
async def test_a_timeout_that_was_rounded_up_on_the_way_still_ends_at_the_exact_deadline(
    arity: str, rounding: float
) -> None:
    asleep = AsleepSince()
    hop = Hop(methods(asleep), rounding=rounding)
    with entered(with_seconds(100.0)):
        await hop.failure(arity)
    await hop.facts.see(CallEnded)
    assert asleep.ended == pytest.approx([100.0 - LEAST_TRANSIT], abs=1e-5)


@each_arity
@in_virtual_time
async def test_a_rounded_timeout_alone_ends_late_so_that_the_exact_rest_is_what_is_tested(arity: str) -> None:
    granted: list[float] = []

    async def tell(request: bytes, context: Any) -> bytes:
        granted.append(context.time_remaining())
        return b""

    hop = Hop(methods(tell), rounding=1.03)
    with entered(with_seconds(100.0)):
        await hop.responses(arity)
    assert granted == pytest.approx([103.0])


@each_arity
@in_virtual_time
async def test_a_cancelled_call_ends_its_handler(arity: str) -> None:
    asleep = AsleepSince()
    hop = Hop(methods(asleep))
    with entered(with_seconds(10.0)):
        call = begin(hop.mesh, arity)
    finishing = asyncio.ensure_future(finish(call, arity))
    await asyncio.sleep(2.0)
    assert call.cancel()
    assert not call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await finishing
    assert call.cancelled()
    ended = await hop.facts.see(CallEnded)
    assert asleep.ended == [2.0]
    assert (ended.code, ended.cause) == ("CANCELLED", Cause.CLIENT_CANCELLED)


@pytest.mark.parametrize(
    ("cancelled", "cause"),
    [(0.975, Cause.DEADLINE_SPENT), (0.960, Cause.CLIENT_CANCELLED), (0.5, Cause.CLIENT_CANCELLED)],
)
@in_virtual_time
async def test_a_timer_whose_deadline_is_late_here_is_told_from_a_client_by_the_calls_that_came_with_it(
    cancelled: float, cause: Cause
) -> None:
    hop = Hop(methods(AsleepSince()), transit=0.03)
    rounded = MeshChannel(MemoryChannel(hop.raw._server, transit=0.03, rounding=1.04), TOKEN)
    with entered(with_seconds(1.0)):
        calls = [begin(channel, "unary_unary") for channel in (hop.mesh, rounded)]
    finishing = [asyncio.ensure_future(finish(call, "unary_unary")) for call in calls]
    await asyncio.sleep(cancelled)
    calls[1].cancel()
    await asyncio.gather(*finishing, return_exceptions=True)
    await hop.interceptor.scopes.emptied()
    # Both waited 30 ms to be taken up. One shows it; the other's timeout was rounded up by more, so its deadline is late by that.
    ended = sorted(hop.facts.seen(CallEnded), key=lambda one: one.deadline_at)
    assert [one.deadline_at for one in ended] == pytest.approx([1.0, 1.03], abs=0.001)
    assert ended[1].cause == cause


@each_arity
@in_virtual_time
async def test_a_cancelled_caller_ends_its_call_and_the_calls_handler(arity: str) -> None:
    asleep = AsleepSince()
    hop = Hop(methods(asleep))
    with entered(with_seconds(10.0)):
        caller = asyncio.create_task(hop.responses(arity))
    await asyncio.sleep(2.0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await hop.facts.see(CallEnded)
    assert asleep.ended == [2.0]


@each_arity
@in_virtual_time
async def test_a_cancel_takes_the_transit_to_cross(arity: str) -> None:
    asleep = AsleepSince()
    hop = Hop(methods(asleep), transit=0.5)
    with entered(with_seconds(10.0)):
        call = begin(hop.mesh, arity)
    await asyncio.sleep(2.0)
    call.cancel()
    await hop.facts.see(CallEnded)
    assert asleep.ended == [2.5]


@each_arity
@in_virtual_time
async def test_an_error_arrives_as_what_it_is(arity: str) -> None:
    hop = Hop(methods(failing(NotFound([Violation("tool", "unknown")]))), transit=0.5)
    with entered(with_seconds(10.0)):
        error = await hop.failure(arity)
    arrived = error_from(error, "an upstream")
    assert isinstance(arrived, NotFound)
    assert (arrived.hop, arrived.violations) == ("hop-a", (Violation("tool", "unknown"),))


@each_arity
@in_virtual_time
async def test_a_bug_is_an_internal_error(arity: str) -> None:
    hop = Hop(methods(failing(LookupError())))
    with entered(with_seconds(10.0)):
        assert (await hop.failure(arity)).code() is grpc.StatusCode.INTERNAL


@each_arity
@in_virtual_time
async def test_a_handler_may_abort_by_itself(arity: str) -> None:
    async def aborts(request: bytes, context: Any) -> bytes:
        await context.abort(grpc.StatusCode.ALREADY_EXISTS, "twice")
        return b""

    hop = Hop(methods(aborts))
    with entered(with_seconds(10.0)):
        error = await hop.failure(arity)
    assert (error.code(), error.details()) == (grpc.StatusCode.ALREADY_EXISTS, "twice")
    assert (await hop.facts.see(CallEnded)).code == "ALREADY_EXISTS"


@each_arity
@in_virtual_time
async def test_a_status_sent_at_the_deadline_reaches_a_caller_that_has_no_timer(arity: str) -> None:
    hop = Hop(methods(AsleepSince()))
    metadata = {"deadline-remaining-us": "3000000", "mesh-identity": f"token={TOKEN};tenant=;tier=;run=;trace="}
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await finish(begin(hop.raw, arity, metadata=metadata.items()), arity)
    assert now() == 3.0
    assert error_info(raised.value)["reason"] == "DEADLINE_SPENT"
    assert isinstance(error_from(raised.value, "hop-a"), DeadlineSpentUpstream)


@each_arity
@in_virtual_time
async def test_a_native_timeout_alone_ends_a_call_as_spent(arity: str) -> None:
    asleep = AsleepSince()
    hop = Hop(methods(asleep))
    with pytest.raises(grpc.aio.AioRpcError):
        await finish(
            begin(
                hop.raw, arity, metadata=[("mesh-identity", f"token={TOKEN};tenant=;tier=;run=;trace=")], timeout=3.0
            ),
            arity,
        )
    ended = await hop.facts.see(CallEnded)
    assert (asleep.ended, ended.cause) == ([3.0], Cause.DEADLINE_SPENT)


@each_arity
@in_virtual_time
async def test_strangers_and_calls_without_a_deadline_are_refused(arity: str) -> None:
    hop = Hop(methods())
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await finish(
            begin(hop.raw, arity, metadata=[("mesh-identity", f"token={TOKEN};tenant=;tier=;run=;trace=")]), arity
        )
    assert isinstance(error_from(raised.value, "hop-a"), NoDeadline)
    stranger = Hop(methods(), token="wrong")
    with entered(with_seconds(10.0)):
        assert isinstance(error_from(await stranger.failure(arity), "hop-a"), Unauthenticated)


@in_virtual_time
async def test_a_method_that_does_not_exist_is_unimplemented() -> None:
    hop = Hop(methods())
    with entered(with_seconds(10.0)):
        assert (await hop.failure("unary_unary", method="nothing")).code() is grpc.StatusCode.UNIMPLEMENTED


@each_arity
@in_virtual_time
async def test_the_handler_sees_its_caller_and_never_the_callers_own_task(arity: str) -> None:
    variables: list[str] = []

    async def tell(request: bytes, context: Any) -> bytes:
        variables.append(current().tenant_id)
        return b""

    hop = Hop(methods(tell))
    with entered(with_seconds(10.0, tenant_id="bolt")):
        await hop.responses(arity)
    assert variables == ["bolt"]


@each_stream
@in_virtual_time
async def test_leaving_a_stream_ends_its_handler(arity: str) -> None:
    asleep = AsleepSince()
    hop = Hop(methods(asleep))
    with entered(with_seconds(10.0)):
        async for _ in begin(hop.mesh, arity):
            await asyncio.sleep(1.0)
            break
    await hop.facts.see(CallEnded)
    assert asleep.ended == [1.0]


@in_virtual_time
async def test_handlers_may_read_and_write_in_their_own_time() -> None:
    async def reads_and_writes(requests: Any, context: Any) -> None:
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(b"re: " + request)

    async def writes(request: Any, context: Any) -> None:
        await context.write(request)
        await asyncio.sleep(1.0)
        await context.write(request)

    hop = Hop(
        {
            "stream_stream": handler("stream_stream", reads_and_writes),
            "unary_stream": handler("unary_stream", writes),
        }
    )
    with entered(with_seconds(10.0)):
        assert await hop.responses("stream_stream") == [b"re: a", b"re: sk"]
        assert await hop.responses("unary_stream") == [b"ask", b"ask"]
    assert now() == 1.0


@each_stream
@in_virtual_time
async def test_a_client_may_read_in_its_own_time(arity: str) -> None:
    hop = Hop(methods())
    with entered(with_seconds(10.0)):
        call = begin(hop.mesh, arity)
    assert [await call.read() for _ in range(4)] == [b"first", b"re: ask", grpc.aio.EOF, grpc.aio.EOF]
    assert await call.code() is grpc.StatusCode.OK


@each_arity
@in_virtual_time
async def test_a_calls_own_facts_are_told_as_grpc_tells_them(arity: str) -> None:
    async def greets(request: bytes, context: Any) -> bytes:
        await context.send_initial_metadata([("greeting", "hello")])
        await asyncio.sleep(1.0)
        return b""

    ends: list[float] = []
    act = greets if arity not in STREAMING else AsleepSince()
    hop = Hop(methods(act))
    with entered(with_seconds(10.0)):
        call = begin(hop.mesh, arity)
    call.add_done_callback(lambda _: ends.append(now()))
    await asyncio.sleep(0.5)
    assert (call.done(), call.time_remaining()) == (False, 9.5)
    if arity not in STREAMING:
        assert dict(await call.initial_metadata()) == {"greeting": "hello"}
    code = await call.code()
    await asyncio.sleep(0)
    assert (call.done(), ends) == (True, [now()])
    assert code is (grpc.StatusCode.DEADLINE_EXCEEDED if arity in STREAMING else grpc.StatusCode.OK)


@each_arity
@in_virtual_time
async def test_a_handler_that_will_not_end_is_an_orphan_and_its_client_is_answered(arity: str) -> None:
    let_go = asyncio.Event()

    async def stubborn(request: bytes, context: Any) -> bytes:
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue
        return b""

    hop = Hop(methods(stubborn))
    metadata = {"deadline-remaining-us": "3000000", "mesh-identity": f"token={TOKEN};tenant=;tier=;run=;trace="}
    with pytest.raises(grpc.aio.AioRpcError):
        await finish(begin(hop.raw, arity, metadata=metadata.items()), arity)
    assert now() == pytest.approx(3.25)
    assert len(hop.facts.seen(OrphanReported)) == 1
    let_go.set()
    await hop.interceptor.scopes.emptied()


@in_virtual_time
async def test_a_run_of_five_minutes_over_six_hops_ends_on_all_at_its_instant() -> None:
    asleep = AsleepSince()
    hop = Hop(methods(asleep), rounding=1.03)
    for _ in range(5):

        async def calls_on(request: bytes, context: Any, inner: Hop = hop) -> bytes:
            try:
                await inner.responses("unary_unary")
            finally:
                asleep.ended.append(now())
            return b""

        hop = Hop(methods(calls_on), rounding=1.03)
    with entered(with_seconds(300.0)):
        error = await hop.failure("unary_unary")
    assert now() == pytest.approx(300.0 - 6 * LEAST_TRANSIT, abs=1e-4)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.sleep(0.1)
    assert asleep.ended == pytest.approx([300.0 - 6 * LEAST_TRANSIT] * 6, abs=1e-4)
