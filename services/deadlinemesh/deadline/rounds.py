"""The next round of cancellation of everything that is being ended.

Rounds are always as far apart, so what waits for its next one stands in the order of its time, and one timer does for all. Hundreds
of calls end together, and a timer for each would be a good part of what that costs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import Context

__all__ = ["CANCEL_AGAIN_AFTER", "Round", "Rounds"]

CANCEL_AGAIN_AFTER = 0.05
"""Seconds between two rounds of cancellation: long enough for an orderly close, short beside any budget."""


MANY = 64
"""Ends within CANCEL_AGAIN_AFTER that are a burst."""


class Round:
    """One round that is to come."""

    __slots__ = ("at", "begin")

    def __init__(self, at: float, begin: Callable[[float], object]) -> None:
        self.at = at
        self.begin: Callable[[float], object] | None = begin

    def drop(self) -> None:
        """It is not needed any more."""
        self.begin = None


class Rounds:
    """The rounds to come on one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._to_come: deque[Round] = deque()
        self._timed = False

    def next(self, begin: Callable[[float], object]) -> Round:
        """Have `begin` called in CANCEL_AGAIN_AFTER, with the seconds by which that is late."""
        one = Round(self._loop.time() + CANCEL_AGAIN_AFTER, begin)
        self._to_come.append(one)
        self._time()
        return one

    @property
    def many(self) -> bool:
        """Whether many are ending together."""
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
