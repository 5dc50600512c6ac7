"""The request of a call: reads it in its caller's turn, and refuses bytes that are no message."""

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
"""Requests of one caller that are read at a time. The core holds the bytes of each before any code
can count them.
"""

READ_FOR_S = 5.0
"""Seconds that a request may be read while another request of the same caller waits."""

READ_IN_ALL = 32
"""Requests of all callers that are read at a time. Beyond it, the one read for longest
is given up.
"""

MANY_BEHIND = 32
"""Requests of one caller that may be missing for longer than BEHIND_S.

Beyond it, the next call ends the oldest of them. Each such call holds 25 kB and does nothing.
"""

BEHIND_S = 1.0
"""Seconds in which a request arrives that is sent together with its headers, also in a burst of a
thousand calls.
"""

Parser = Callable[[bytes], Any]


def parser_of(method: str, deserialize: Parser | None, *, raises: bool = True) -> Parser | None:
    """Return `deserialize` with an error of ours: bytes that are no message of `method` raise
    InvalidRequest.

    With `raises=False` the error is returned in place of the message. None if there is no
    `deserialize`.
    """
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
    """Read the one request of a call.

    Raises InvalidRequest if the call ends without a request, and ClientCancelled if the peer has
    left.
    """
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
    """The requests that are being read: few at a time of each caller, and few in all. The others
    wait.
    """

    def __init__(self, stragglers: Stragglers, clock: Clock) -> None:
        self._stragglers = stragglers
        self._clock = clock
        self._read: dict[Exchange, tuple[str, float]] = {}
        """The caller of each request that is being read, and the instant at which its reading
        began. The one read for longest comes first.
        """
        self._counts: dict[str, int] = {}
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._behind: dict[str, dict[Exchange, float]] = {}
        """The calls of each caller without their request yet, and the instant of each. The oldest
        comes first.
        """

    @asynccontextmanager
    async def turn(self, caller: str, exchange: Exchange) -> AsyncIterator[None]:
        """Context manager. Waits for the caller's turn; the block then reads the request."""
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
