"""Field notes, section 2: what grpc.aio does to calls, and that it does not do it to ours.

Each test shows first that the library still behaves so, and then that the mesh does not suffer from it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc
import pytest
from tests.hazards.raw import LONG, Swallowing, cured, left_alone, plain, settled, some_round_trips
from tests.support.rpc import (
    ARITIES,
    STREAMING,
    Asleep,
    begin,
    echo,
    finish,
    handler,
    in_a_scope,
    methods,
    register,
    responses,
    serving,
    with_seconds,
    within_bounds,
)

from deadlinemesh.deadline import entered
from deadlinemesh.deadline.scope import current_scope
from deadlinemesh.errors import Cause, ClientCancelled, Draining, InternalFailure
from deadlinemesh.telemetry import CallEnded, CallStarted
from deadlinemesh.transport import error_from

each_arity = pytest.mark.parametrize("arity", ARITIES)
each_stream = pytest.mark.parametrize("arity", STREAMING)


def quick() -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    """One more method, for round trips beside the call that is looked at."""

    async def answer(request: bytes, context: Any) -> bytes:
        return await echo(request, context)

    return {"quick": handler("unary_unary", answer)}


async def cancels_itself(request: bytes, context: Any) -> bytes:
    raise asyncio.CancelledError


@each_arity
async def test_grpc_29248_a_handler_that_lets_its_own_cancelled_error_escape_still_sends_a_status(arity: str) -> None:
    async with plain(methods(cancels_itself)) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await within_bounds(finish(begin(channel, arity, timeout=0.3), arity))
    if raised.value.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:  # which only the client's own timer says
        cured("grpc 29248", "turning a handler's own CancelledError into a status in `Scope.run`")

    async with serving(methods(cancels_itself)) as hop:
        with entered(with_seconds(LONG)), pytest.raises(grpc.aio.AioRpcError) as raised:
            await within_bounds(finish(begin(hop.mesh, arity), arity))
    assert isinstance(error_from(raised.value, "hop-a"), InternalFailure)


@each_arity
async def test_a_handler_that_swallows_the_only_cancel_runs_on_so_ours_is_cancelled_again(arity: str) -> None:
    work = Swallowing(3)
    async with plain({**methods(work), **quick()}) as channel:
        call = begin(channel, arity, timeout=LONG)
        await work.until("began")
        call.cancel()
        await work.until("swallowed")
        await some_round_trips(channel, "quick")
        befallen = list(work.befallen)
        await work.let_go()
    if befallen != ["began", "swallowed"]:
        cured("that cancellation comes once", "the rounds of cancellation in `Scope`")

    work = Swallowing(3)
    async with serving(methods(work)) as hop:
        with entered(with_seconds(LONG)):
            call = begin(hop.mesh, arity)
            await work.until("began")
            call.cancel()
        await work.until("ended")
        assert work.befallen == ["began", "swallowed", "swallowed", "swallowed", "ended"]
        assert (await hop.facts.see(CallEnded)).cause == Cause.CLIENT_CANCELLED


@each_arity
async def test_tasks_of_create_task_survive_a_cancelled_handler_but_not_its_scope(arity: str) -> None:
    child = Asleep()
    children: list[asyncio.Task[bytes]] = []
    asleep = Asleep()

    async def has_a_child(request: bytes, context: Any) -> bytes:
        children.append(asyncio.create_task(child(request, context)))
        await child.began.wait()
        return await asleep(request, context)

    async with plain({**methods(has_a_child), **quick()}) as channel:
        call = begin(channel, arity, timeout=LONG)
        await within_bounds(asleep.began.wait())
        call.cancel()
        await within_bounds(asleep.ended.wait())
        await some_round_trips(channel, "quick")
        survived = not children[0].done()
        await left_alone(children[0])
        if not survived:
            cured("that children outlive their handler", "the task factory of `Scope`")

    child, asleep = Asleep(), Asleep()
    async with serving(methods(has_a_child)) as hop:
        with entered(with_seconds(LONG)):
            call = begin(hop.mesh, arity)
            await within_bounds(asleep.began.wait())
            call.cancel()
        await within_bounds(child.ended.wait())


@each_stream
async def test_grpc_43462_an_abandoned_stream_is_never_cancelled_but_ours_is(arity: str) -> None:
    asleep = Asleep()
    async with plain({**methods(asleep), **quick()}) as channel:
        call = begin(channel, arity, timeout=LONG)
        async for _ in call:
            await within_bounds(asleep.began.wait())
            break
        await some_round_trips(channel, "quick")
        if asleep.ended.is_set():
            cured("grpc 43462", "`StreamingCall`")
        call.cancel()

    asleep = Asleep()
    async with serving(methods(asleep)) as hop:
        with entered(with_seconds(LONG)):
            call = begin(hop.mesh, arity)
            async for _ in call:
                await within_bounds(asleep.began.wait())
                break
        await within_bounds(asleep.ended.wait())


@each_arity
async def test_grpc_36193_a_cancelled_context_says_it_is_not_so_our_telemetry_tells_the_cause_itself(
    arity: str,
) -> None:
    asleep = Asleep()
    said: list[bool] = []
    told = asyncio.Event()

    def ask(context: Any) -> None:
        said.append(context.cancelled())
        told.set()

    async def asks_when_done(request: bytes, context: Any) -> bytes:
        context.add_done_callback(ask)
        return await asleep(request, context)

    async with plain(methods(asks_when_done)) as channel:
        call = begin(channel, arity, timeout=LONG)
        await within_bounds(asleep.began.wait())
        call.cancel()
        await within_bounds(told.wait())
    if said != [False]:
        cured("grpc 36193", "nothing: but `context.cancelled()` could be trusted now")

    asleep = Asleep()
    async with serving(methods(asks_when_done)) as hop:
        with entered(with_seconds(LONG)):
            call = begin(hop.mesh, arity)
            await within_bounds(asleep.began.wait())
            call.cancel()
        assert (await hop.facts.see(CallEnded)).cause == Cause.CLIENT_CANCELLED


async def test_grpc_43502_a_cancel_loses_its_message_on_a_unary_call_so_causes_are_types_here() -> None:
    asleep = Asleep()
    async with plain(methods(asleep)) as channel:
        caller = asyncio.ensure_future(finish(begin(channel, "unary_unary", timeout=LONG), "unary_unary"))
        await within_bounds(asleep.began.wait())
        caller.cancel("the reason")
        with pytest.raises(asyncio.CancelledError) as raised:
            await caller
    if raised.value.args == ("the reason",):
        cured("grpc 43502", "nothing: but messages of cancels could be used now")

    asleep = Asleep()
    async with serving(methods(asleep)) as hop:

        async def calls_on(request: bytes, context: Any) -> bytes:
            return b"".join(await responses(hop.mesh, "unary_unary"))

        async with serving(methods(calls_on)) as outer:
            with entered(with_seconds(LONG)):
                call = begin(outer.mesh, "unary_unary")
                await within_bounds(asleep.began.wait())
                call.cancel()
            assert (await hop.facts.see(CallEnded)).cause == Cause.CLIENT_CANCELLED
            assert (await outer.facts.see(CallEnded)).cause == Cause.CLIENT_CANCELLED
        with entered(with_seconds(LONG)):
            asleep.began.clear()
            caller_in_a_scope = asyncio.ensure_future(in_a_scope(LONG, lambda: responses(hop.mesh, "unary_unary")))
            await within_bounds(asleep.began.wait())
            caller_in_a_scope.cancel("the reason")
            with pytest.raises((ClientCancelled, asyncio.CancelledError)):
                await caller_in_a_scope


class _PassOn(
    grpc.aio.UnaryUnaryClientInterceptor,
    grpc.aio.UnaryStreamClientInterceptor,
):
    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(details, request)

    async def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(details, request)


async def test_grpc_28778_and_33951_an_intercepted_call_cannot_tell_its_time_and_one_of_ours_can() -> None:
    asleep = Asleep()
    async with plain(methods(asleep), client_interceptors=(_PassOn(),)) as channel:
        call = begin(channel, "unary_unary", timeout=LONG)
        try:
            call.time_remaining()
        except NotImplementedError:
            pass
        else:
            cured("grpc 33951", "the channel decorator, in favour of client interceptors, if 28778 and 3271 are too,")
        call.cancel()
        with suppress(asyncio.CancelledError):
            await call

    for arity in ARITIES:
        asleep = Asleep()
        async with serving(methods(asleep)) as hop:
            with entered(with_seconds(LONG)):
                call = begin(hop.mesh, arity)
                assert 0 < call.time_remaining() <= LONG
                await within_bounds(asleep.began.wait())
                assert call.cancel()
            await within_bounds(asleep.ended.wait())
            with pytest.raises(asyncio.CancelledError):
                await finish(call, arity)
            assert await call.code() is grpc.StatusCode.CANCELLED


async def test_grpc_37239_and_31570_calls_that_are_ended_while_the_server_stops_get_their_status_and_leave_no_noise(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asleep = Asleep()
    async with serving(methods(asleep), drain=0.0) as hop:
        with entered(with_seconds(LONG)):
            calls = [(begin(hop.mesh, arity), arity) for arity in ARITIES for _ in range(10)]
            ends = asyncio.gather(*(finish(call, arity) for call, arity in calls), return_exceptions=True)
            await hop.facts.see(CallStarted, len(calls))
            with caplog.at_level(logging.WARNING, "grpc"):
                await within_bounds(hop.server.drain())
        for error in await within_bounds(ends):
            assert isinstance(error, grpc.aio.AioRpcError)
            assert isinstance(error_from(error, "hop-a"), Draining)
    assert [record for record in caplog.records if record.name.startswith("grpc")] == []


async def test_grpc_29248_a_plain_server_that_stops_tells_its_calls_nothing_of_why() -> None:
    asleep = Asleep()
    server = grpc.aio.server()
    register(server, methods(asleep))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = begin(channel, "unary_unary", timeout=LONG)
        await within_bounds(asleep.began.wait())
        await within_bounds(server.stop(grace=0.01))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await within_bounds(call)
    if "grpc-status-details-bin" in dict(raised.value.trailing_metadata() or ()):
        cured("that a stopping server says nothing", "stopping all scopes in `MeshServer.stop`")


@each_stream
async def test_grpc_31570_a_client_that_leaves_in_the_middle_of_an_answer_is_no_error_of_the_hop(
    arity: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def writes_on(request: bytes, context: Any) -> AsyncIterator[bytes]:
        while True:
            yield bytes(1000)

    async def writes_on_too(requests: Any, context: Any) -> AsyncIterator[bytes]:
        while True:
            yield bytes(1000)

    handlers = {
        "unary_stream": handler("unary_stream", writes_on),
        "stream_stream": handler("stream_stream", writes_on_too),
    }
    async with serving(handlers) as hop:
        with caplog.at_level(logging.WARNING), entered(with_seconds(LONG)):
            for number in range(1, 31):
                async with begin(hop.mesh, arity, requests=()) as call:
                    for _ in range(number):
                        await within_bounds(call.read())
            await hop.facts.see(CallEnded, 30)
            await settled()
        assert {ended.cause for ended in hop.facts.seen(CallEnded)} == {Cause.CLIENT_CANCELLED}
    assert [record.getMessage() for record in caplog.records] == []


@each_arity
async def test_grpc_42125_channels_that_close_beside_readers_being_cancelled_leave_no_call_behind(arity: str) -> None:
    asleep = Asleep()
    async with serving(methods(asleep)) as hop:
        for number in range(1, 6):
            asleep.began.clear()

            async def read() -> None:
                await responses(hop.mesh, arity)

            reader = asyncio.ensure_future(in_a_scope(LONG, read))
            await within_bounds(asleep.began.wait())
            reader.cancel()
            with pytest.raises((ClientCancelled, asyncio.CancelledError)):
                await reader
            await hop.facts.see(CallEnded, number)
        await hop.raw.close()
        await within_bounds(hop.interceptor.scopes.emptied())


async def test_grpc_41531_30424_24809_the_mesh_sets_no_limit_of_grpcs_own_on_concurrent_calls() -> None:
    calls = 200
    asleep = Asleep()
    async with serving(methods(asleep)) as hop:
        with entered(with_seconds(LONG)):
            begun = [begin(hop.mesh, "unary_unary") for _ in range(calls)]
            await hop.facts.see(CallStarted, calls)
            for call in begun:
                call.cancel()
        await within_bounds(hop.interceptor.scopes.emptied())


@pytest.mark.parametrize("sent", ["a message", "metadata"])
@each_stream
async def test_an_answer_that_is_cut_in_its_first_message_loses_its_status_and_ours_does_not(
    arity: str, sent: str
) -> None:
    async def send(context: Any) -> None:
        if sent == "metadata":
            await context.send_initial_metadata([("key", "value")])
        else:
            await context.write(b"first")

    async def is_cut(request: Any, context: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_soon(task.cancel)  # before the core can have told that it was sent
        try:
            await send(context)
        except asyncio.CancelledError:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "was cut")

    async with plain({arity: handler(arity, is_cut)}) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await within_bounds(finish(begin(channel, arity, requests=(), timeout=0.3), arity))
    if raised.value.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:  # which only the client's own timer says
        cured("that a status is lost after a cut", "`GuardedContext`")

    async def is_stopped(request: Any, context: Any) -> None:
        scope = current_scope()
        assert scope is not None
        asyncio.get_running_loop().call_soon(scope.stop, Cause.DRAINING)
        await send(context)
        await asyncio.get_running_loop().create_future()

    async with serving({arity: handler(arity, is_stopped)}) as hop:
        with entered(with_seconds(LONG)), pytest.raises(grpc.aio.AioRpcError) as raised:
            await within_bounds(finish(begin(hop.mesh, arity, requests=()), arity))
    assert isinstance(error_from(raised.value, "hop-a"), Draining)
