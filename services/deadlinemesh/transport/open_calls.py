"""Calls that need no credential: health and reflection.

They are few at a time. Each is brief, or a watch that only listens.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from inspect import isasyncgenfunction
from typing import TYPE_CHECKING, Any

import grpc

from deadlinemesh.deadline import Clock
from deadlinemesh.errors import MeshError
from deadlinemesh.transport.connections import plain
from deadlinemesh.transport.peers import REFUSED_CALL, Peers
from deadlinemesh.transport.requests import late_request, received
from deadlinemesh.transport.status import status_of
from deadlinemesh.transport.stragglers import Exchange, Stage, Stragglers

__all__ = ["OpenCalls", "OpenMethod"]

if TYPE_CHECKING:
    MethodHandler = grpc.RpcMethodHandler[Any, Any]

MOST_BRIEF = 256
"""Brief calls at a time. Beyond it, the older half of them is ended to make room."""

WATCHES_PER_CONNECTION = 16
"""`Health/Watch` calls of one connection."""

_WATCH = "/grpc.health.v1.Health/Watch"


class OpenCalls:
    """The open calls of one hop. `most_watches` is the limit for `Health/Watch` calls. A brief call
    has `seconds` from its headers to its end.
    """

    def __init__(self, stragglers: Stragglers, peers: Peers, clock: Clock, seconds: float, most_watches: int) -> None:
        self.stragglers = stragglers
        self.peers = peers
        self.clock = clock
        self.seconds = seconds
        self._most_watches = most_watches
        self._brief: dict[Exchange, None] = {}

    def enter(self, exchange: Exchange) -> None:
        """Make room for a brief call. `leave` must follow."""
        if len(self._brief) >= MOST_BRIEF:
            oldest = list(self._brief)[: MOST_BRIEF // 2]
            for one in oldest:
                del self._brief[one]
            self.stragglers.end(oldest)
        self._brief[exchange] = None

    def leave(self, exchange: Exchange) -> None:
        """Remove a call that is over."""
        self._brief.pop(exchange, None)

    def may_watch(self, peer: str) -> bool:
        """True if there is room for one more `Health/Watch` of this connection."""
        watches = self.peers.watches
        return watches[peer] < WATCHES_PER_CONNECTION and watches.total() < self._most_watches


class OpenMethod:
    """One method of health or reflection. grpc.aio calls it with a stream of requests, even if its
    handler takes one request.
    """

    def __init__(self, calls: OpenCalls, name: str, handler: MethodHandler) -> None:
        kind = ("stream" if handler.request_streaming else "unary", "stream" if handler.response_streaming else "unary")
        self._calls = calls
        self._name = name
        self._streaming = handler.request_streaming
        self._handle: Callable[[Any, Any], Any] = getattr(handler, "_".join(kind))
        self._yields = isasyncgenfunction(self._handle)

    async def serve(self, requests: Any, context: Any) -> Any:
        """Serve one call."""
        calls, task = self._calls, asyncio.current_task()
        assert task is not None
        peer = plain(context.peer())
        calls.peers.charge(peer, 1.0)
        exchange = Exchange(task, self._name)
        calls.stragglers.expect(exchange, Stage.REQUEST, calls.clock.monotonic() + calls.seconds)
        calls.enter(exchange)
        try:
            request = requests if self._streaming else await received(context, self._name)
            if self._name == _WATCH:
                calls.leave(exchange)
                return await self._watch(request, context, exchange, peer)
            if self._yields:
                await self._stream(self._handle(request, context), context, exchange)
                return None
            return await self._handle(request, context)
        except MeshError as error:
            calls.peers.charge(peer, REFUSED_CALL)
            await self._refuse(error, context, exchange)
        except grpc.aio.InternalError as error:  # the peer has left
            raise asyncio.CancelledError from error
        except asyncio.CancelledError:
            if not exchange.request_late:
                raise
            task.uncancel()
            calls.peers.charge(peer, REFUSED_CALL)
            await self._refuse(late_request(self._name, calls.seconds), context, exchange)
        finally:
            calls.leave(exchange)
            self._expect_reading(exchange)

    async def _watch(self, request: Any, context: Any, exchange: Exchange, peer: str) -> None:
        calls = self._calls
        if not calls.may_watch(peer):
            # After this status, the health protocol has a client consider the server healthy and
            # not ask again.
            self._expect_reading(exchange)
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "too many watch already: use Check")
        calls.peers.watches[peer] += 1
        exchange.work()
        try:
            await self._stream(self._handle(request, context), context, exchange)
        finally:
            calls.peers.watches[peer] -= 1
            if not calls.peers.watches[peer]:
                del calls.peers.watches[peer]

    async def _stream(self, responses: AsyncIterator[Any], context: Any, exchange: Exchange) -> None:
        stage, until = exchange.stage, exchange.until
        async for response in responses:
            self._expect_reading(exchange)
            await context.write(response)
            exchange.stage, exchange.until = stage, until

    async def _refuse(self, error: MeshError, context: Any, exchange: Exchange) -> None:
        self._expect_reading(exchange)
        ending: Awaitable[None] = context.abort_with_status(status_of(error))
        with suppress(grpc.aio.InternalError):  # the peer has left
            await ending

    def _expect_reading(self, exchange: Exchange) -> None:
        self._calls.stragglers.reply(exchange, self._calls.clock.monotonic())
