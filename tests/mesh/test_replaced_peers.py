"""Peers that are replaced behind one name while calls go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from tests.support.rpc import GENEROUS, SERVICE, TOKEN, Served, begin, handler, responses, serving, with_seconds

from deadlinemesh.deadline import entered
from deadlinemesh.errors import Draining
from deadlinemesh.transport import MeshChannel, error_from, mesh_channel

ENOUGH = 6
"""Answers in a row that cannot be luck where every other call would go to another peer."""


class Peer:
    """A hop that tells over which connection it was called, at once (`ask`) or when it is let go (`hold`)."""

    def __init__(self) -> None:
        self.held, self.go_on = asyncio.Event(), asyncio.Event()
        self.hop: Served

    async def hold(self, request: bytes, context: Any) -> bytes:
        self.held.set()
        await self.go_on.wait()
        return await self.ask(request, context)

    async def ask(self, request: bytes, context: Any) -> bytes:
        connection: str = context.peer()
        return connection.encode()


@asynccontextmanager
async def peer(**options: Any) -> AsyncIterator[Peer]:
    one = Peer()
    handlers = {name: handler("unary_unary", getattr(one, name)) for name in ("hold", "ask")}
    async with serving(handlers, **options) as one.hop:
        yield one


@asynccontextmanager
async def channel_to(*peers: Peer) -> AsyncIterator[MeshChannel]:
    target = "ipv4:" + ",".join(f"127.0.0.1:{one.hop.server.port}" for one in peers)
    channel = mesh_channel(target, mesh_token=TOKEN, message_bytes=1024, healthy=SERVICE)
    try:
        with entered(with_seconds(GENEROUS)):
            yield channel
    finally:
        await channel.close()


async def ask(channel: MeshChannel) -> bytes | Exception:
    try:
        [answer] = await responses(channel, "unary_unary", "ask")
    except grpc.aio.AioRpcError as error:
        return error_from(error, "hop-a")
    return answer


async def test_a_peer_that_drains_is_passed_over_and_finishes_what_it_has() -> None:
    async with peer() as one, peer() as two, channel_to(one, two) as channel:
        holding = asyncio.ensure_future(responses(channel, "unary_unary", "hold"))
        waits = [asyncio.ensure_future(each.held.wait()) for each in (one, two)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED, timeout=GENEROUS)
        leaving = one if one.held.is_set() else two
        draining = asyncio.ensure_future(leaving.hop.server.drain())
        answered = 0
        async with asyncio.timeout(GENEROUS):
            while answered < ENOUGH:
                answer = await ask(channel)
                answered = answered + 1 if isinstance(answer, bytes) else 0
                # Until it is known it says so itself.
                assert isinstance(answer, (bytes, Draining))
        assert not holding.done()
        leaving.go_on.set()
        assert len(await holding) == 1
        await draining
        for wait in waits:
            wait.cancel()


async def test_where_every_peer_drains_the_cause_is_that() -> None:
    async with peer() as one, channel_to(one) as channel:
        holding = asyncio.ensure_future(responses(channel, "unary_unary", "hold"))
        await one.held.wait()
        draining = asyncio.ensure_future(one.hop.server.drain())
        async with asyncio.timeout(GENEROUS):
            while True:
                try:
                    await begin(channel, "unary_unary", "ask")
                except grpc.aio.AioRpcError as error:
                    told = error_from(error, "hop-a")
                    assert isinstance(told, Draining)
                    if "every instance" in str(told):  # the channel's own word, no longer the peer's
                        break
        one.go_on.set()
        assert len(await holding) == 1
        await draining


async def test_a_connection_of_age_is_made_anew_and_its_calls_go_on() -> None:
    async with peer(connection_age=0.1) as one, channel_to(one) as channel:
        holding = asyncio.ensure_future(responses(channel, "unary_unary", "hold"))
        await one.held.wait()
        connections: set[bytes] = set()
        async with asyncio.timeout(GENEROUS):
            while len(connections) < 3:
                answer = await ask(channel)
                assert isinstance(answer, bytes)
                connections.add(answer)
        one.go_on.set()
        assert len(await holding) == 1


async def test_no_call_fails_because_its_connection_was_just_ending() -> None:
    async with peer(connection_age=0.02) as one, channel_to(one) as channel:
        connections: set[bytes] = set()

        async def ask_on() -> None:
            async with asyncio.timeout(GENEROUS):
                while len(connections) < 10:
                    answer = await ask(channel)
                    assert isinstance(answer, bytes)
                    connections.add(answer)

        await asyncio.gather(*(ask_on() for _ in range(8)))


async def test_without_an_age_a_connection_stays() -> None:
    async with peer() as one, channel_to(one) as channel:
        assert len({await ask(channel) for _ in range(50)}) == 1
