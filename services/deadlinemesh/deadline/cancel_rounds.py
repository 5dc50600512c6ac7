"""Repeated cancellation of work that is being ended.

Every round comes the same time after its request, so the pending rounds are ordered by time and one
timer serves all. Hundreds of calls may end together. A timer for each would be a good part of their
cost.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import Context

__all__ = ["CANCEL_AGAIN_AFTER", "CancelRound", "CancelRounds"]

CANCEL_AGAIN_AFTER = 0.05
"""Seconds between two rounds: enough for an orderly close, short beside any budget."""


MANY = 64
"""Rounds requested within CANCEL_AGAIN_AFTER. More than this are a burst."""


class CancelRound:
    """One pending round."""

    __slots__ = ("at", "begin")

    def __init__(self, at: float, begin: Callable[[float], object]) -> None:
        self.at = at
        self.begin: Callable[[float], object] | None = begin

    def drop(self) -> None:
        """Cancel this round: it is not needed any more."""
        self.begin = None


class CancelRounds:
    """The pending rounds of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._to_come: deque[CancelRound] = deque()
        self._timed = False

    def next(self, begin: Callable[[float], object]) -> CancelRound:
        """Call `begin` after CANCEL_AGAIN_AFTER. Its argument is its lateness in seconds."""
        one = CancelRound(self._loop.time() + CANCEL_AGAIN_AFTER, begin)
        self._to_come.append(one)
        self._time()
        return one

    @property
    def many(self) -> bool:
        """True if many scopes are ending together."""
        return len(self._to_come) > MANY

    def _time(self) -> None:
        while self._to_come and self._to_come[0].begin is None:
            self._to_come.popleft()
        if self._to_come and not self._timed:
            self._timed = True
            self._loop.call_at(self._to_come[0].at, self._turn, context=Context())

    def _turn(self) -> None:
        self._timed = False
        now = self._loop.time()
        try:
            while self._to_come and self._to_come[0].at <= now:
                one = self._to_come.popleft()
                if one.begin is not None:
                    one.begin(now - one.at)
        finally:
            self._time()
