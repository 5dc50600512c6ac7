"""The request of a call: read in its turn, and refused where it is none."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from deadlinemesh.deadline import Clock
from deadlinemesh.errors import ClientCancelled, InvalidRequest, MeshError, Violation
from deadlinemesh.transport.stragglers import Exchange, Stage, Stragglers

__all__ = ["Readings", "late_request", "parser_of", "received"]

READ_AT_ONCE = 4
"""Requests of one caller that are read at a time. The core holds the bytes of each before anybody knows how many there are."""

READ_FOR_S = 5.0
"""Seconds after which one gives way to another of its caller's that waits."""

READ_IN_ALL = 32
"""And of all. Beyond it, the one that has been read for longest is given up."""

MANY_BEHIND = 32
"""Requests of one caller that may be on their way for longer than BEHIND_S. Beyond it, the oldest gives way to the next: each is
25 kB of calls that do nothing."""

BEHIND_S = 1.0
"""Seconds in which a request arrives that is sent together with its headers, in a burst of a thousand too."""

Parser = Callable[[bytes], Any]


def parser_of(method: str, deserialize: Parser | None, *, raises: bool = True) -> Parser | None:
    """`deserialize`, raising InvalidRequest for bytes that are no message of `method`, or returning it instead."""
    if deserialize is None:
        return None

    def parse(data: bytes) -> Any:
        try:
            return deserialize(data)
        except MeshError:
            raise
        except Exception as error:
            what = f"its {len(data)} bytes are no message of {method}: {type(error).__name__}"
            refused = InvalidRequest([Violation("request", what)])
            if not raises:
                return refused
            raise refused from None

    return parse


async def received(context: Any, method: str) -> Any:
    """The one request of a call. Raises InvalidRequest where it ends without, and ClientCancelled where the peer has left."""
    request = await context.read()
    if request is not grpc.aio.EOF:
        return request
    if context.done():
        raise ClientCancelled("the caller left before it had sent its request")
    raise InvalidRequest([Violation("request", f"is missing: {method} takes one message")])


def late_request(method: str, seconds: float) -> InvalidRequest:
    """The error for a request that has not arrived in `seconds`."""
    return InvalidRequest(
        [Violation("request", f"{method} waits {seconds:g} s for its message, and it has not arrived")]
    )


class Readings:
    """The requests that are being read: few of each caller, whose others wait, and few in all."""

    def __init__(self, stragglers: Stragglers, clock: Clock) -> None:
        self._stragglers = stragglers
        self._clock = clock
        self._read: dict[Exchange, tuple[str, float]] = {}
        """Whose each is, and since when it is read; the first for longest."""
        self._counts: dict[str, int] = {}
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._behind: dict[str, dict[Exchange, float]] = {}
        """The calls of each caller whose requests have not arrived, the oldest first, and since when."""

    @asynccontextmanager
    async def turn(self, caller: str, exchange: Exchange) -> AsyncIterator[None]:
        """Wait for the caller's turn, and read in the block."""
        behind = self._behind.setdefault(caller, {})
        self._make_room(behind)
        behind[exchange] = self._clock.monotonic()
        try:
            while self._counts.get(caller, 0) >= READ_AT_ONCE:
                self._hurry(caller)
                waiter = asyncio.get_running_loop().create_future()
                self._waiting.setdefault(caller, deque()).append(waiter)
                try:
                    await waiter
                except asyncio.CancelledError:
                    if waiter.done():
                        self._wake(caller)
                    raise
            if len(self._read) >= READ_IN_ALL:
                self._stragglers.give_up(next(iter(self._read)))
            self._counts[caller] = self._counts.get(caller, 0) + 1
            self._read[exchange] = caller, self._clock.monotonic()
            try:
                yield
            finally:
                self._read.pop(exchange, None)
                self._counts[caller] -= 1
                if not self._counts[caller]:
                    del self._counts[caller]
                self._wake(caller)
        finally:
            behind.pop(exchange, None)
            if not behind and self._behind.get(caller) is behind:
                del self._behind[caller]

    def _make_room(self, behind: dict[Exchange, float]) -> None:
        if len(behind) < MANY_BEHIND:
            return
        oldest, since = next(iter(behind.items()))
        if self._clock.monotonic() - since > BEHIND_S:
            del behind[oldest]
            self._stragglers.give_up(oldest)

    def _hurry(self, caller: str) -> None:
        longest, since = next((one, since) for one, (whose, since) in self._read.items() if whose == caller)
        if longest.until > since + READ_FOR_S:
            self._stragglers.expect(longest, Stage.REQUEST, since + READ_FOR_S)

    def _wake(self, caller: str) -> None:
        waiting = self._waiting.get(caller)
        while waiting:
            waiter = waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                break
        if not waiting:
            self._waiting.pop(caller, None)
