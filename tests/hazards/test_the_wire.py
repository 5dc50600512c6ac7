"""Field notes, section 1: what the wire does to a deadline, and that it does not do it to ours.

Each test shows first that the library still behaves so, and then that the mesh does not suffer from it.
"""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest
from tests.hazards.raw import LONG, cured, plain
from tests.support.rpc import (
    ARITIES,
    TOKEN,
    Asleep,
    begin,
    finish,
    methods,
    responses,
    serving,
    with_seconds,
    within_bounds,
)

from deadlinemesh.deadline import SYSTEM_CLOCK, current, entered
from deadlinemesh.errors import NoDeadline
from deadlinemesh.identity.peers import IDENTITY
from deadlinemesh.transport import error_from


async def tell_native(request: bytes, context: Any) -> bytes:
    return repr(context.time_remaining()).encode()


async def tell_ours(request: bytes, context: Any) -> bytes:
    return repr(current().absolute_deadline).encode()


async def test_grpc_28346_the_core_rounds_a_timeout_up_and_sends_a_longer_one_again() -> None:
    async with plain(methods(tell_native)) as channel:
        stretched = []
        for seconds in (10.3, 10.0, 100.1, 97.1):
            arrived = float(await within_bounds(begin(channel, "unary_unary", timeout=seconds)))
            stretched.append(arrived - seconds)
    if max(stretched) < 0.2:
        cured("grpc 28346", "`deadline-remaining-us`")

    async with serving(methods(tell_ours)) as hop:
        for seconds in (10.3, 10.0, 100.1, 97.1):
            with entered(with_seconds(seconds)) as context:
                began = SYSTEM_CLOCK.monotonic()
                arrived = float(await within_bounds(begin(hop.mesh, "unary_unary")))
                transit = SYSTEM_CLOCK.monotonic() - began
            assert arrived - context.absolute_deadline <= transit


async def test_time_remaining_is_none_without_a_timeout_and_the_mesh_refuses_such_a_call() -> None:
    async with plain(methods(tell_native)) as channel:
        if await within_bounds(begin(channel, "unary_unary")) != b"None":
            cured("that `time_remaining()` is None", "the check of None in `transport.gates`")

    async with serving(methods()) as hop:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await within_bounds(
                begin(hop.raw, "unary_unary", metadata=[(IDENTITY, f"token={TOKEN};tenant=;tier=;run=;trace=")])
            )
    assert isinstance(error_from(raised.value, "hop-a"), NoDeadline)


async def test_grpc_aio_hands_no_deadline_on_to_the_calls_of_a_handler_and_the_mesh_does() -> None:
    async with plain(methods(tell_native)) as inner:

        async def calls_on(request: bytes, context: Any) -> bytes:
            return b"".join(await responses(inner, "unary_unary"))

        async with plain(methods(calls_on)) as outer:
            if await within_bounds(begin(outer, "unary_unary", timeout=LONG)) != b"None":
                cured("that nothing is propagated", "nothing: exactness still needs us, but say so in the notes")

    async with serving(methods(tell_ours)) as inner_hop:

        async def calls_on_in_the_mesh(request: bytes, context: Any) -> bytes:
            return b"".join(await responses(inner_hop.mesh, "unary_unary"))

        async with serving(methods(calls_on_in_the_mesh)) as outer_hop:
            with entered(with_seconds(LONG)) as context:
                began = SYSTEM_CLOCK.monotonic()
                arrived = float(await within_bounds(begin(outer_hop.mesh, "unary_unary")))
                transit = SYSTEM_CLOCK.monotonic() - began
    assert arrived - context.absolute_deadline <= transit


@pytest.mark.parametrize("arity", ARITIES)
async def test_grpc_34547_and_40633_a_service_configs_timeout_fires_early_so_no_channel_of_ours_has_one(
    arity: str,
) -> None:
    seconds = 1.9
    config = json.dumps({"methodConfig": [{"name": [{}], "timeout": f"{seconds}s"}]})
    async with plain(methods(Asleep()), options=(("grpc.service_config", config),)) as channel:
        began = SYSTEM_CLOCK.monotonic()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await within_bounds(finish(begin(channel, arity), arity))
        took = SYSTEM_CLOCK.monotonic() - began
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    if took >= seconds:
        cured("grpc 34547", "the rule of per-call timeouts")

    seconds = 0.5
    async with serving(methods(Asleep())) as hop:
        with entered(with_seconds(seconds)) as context:
            with pytest.raises(grpc.aio.AioRpcError):
                await within_bounds(finish(begin(hop.mesh, arity), arity))
            assert context.remaining < 0.005


async def test_retries_have_one_owner_and_it_is_not_the_channel() -> None:
    attempts = 0

    async def unavailable(request: bytes, context: Any) -> bytes:
        nonlocal attempts
        attempts += 1
        await context.abort(grpc.StatusCode.UNAVAILABLE, "try again")
        return b""

    async with serving(methods(unavailable)) as hop:
        with entered(with_seconds(LONG)), pytest.raises(grpc.aio.AioRpcError):
            await within_bounds(begin(hop.mesh, "unary_unary"))
    assert attempts == 1
