"""Monotonic clocks: the source of all instants."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod

__all__ = ["SYSTEM_CLOCK", "Clock", "SystemClock", "VirtualClock"]


class Clock(ABC):
    """A monotonic clock. The event loop's timers must use the same one.

    asyncio's timers use `SystemClock`.
    """

    @abstractmethod
    def monotonic(self) -> float:
        """The current instant, in seconds from an arbitrary, fixed origin."""


class SystemClock(Clock):
    """`time.monotonic`, the clock of asyncio too."""

    monotonic = staticmethod(time.monotonic)


class VirtualClock(Clock):
    """A clock that moves only by `advance`, so that tests of time do not wait.

        clock = VirtualClock()
        clock.advance(1.5)
        clock.monotonic()  # 1.5

    `testing.virtual_time` has an event loop that uses this clock and moves it from timer to timer.
    """

    def __init__(self, start: float = 0.0) -> None:
        self._now = start

    def monotonic(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Move the clock on by `seconds`. Raises ValueError if negative: it cannot go back."""
        if seconds < 0:
            raise ValueError(f"a monotonic clock cannot go back by {-seconds} s")
        self._now += seconds

    def __repr__(self) -> str:
        return f"VirtualClock({self._now})"


SYSTEM_CLOCK = SystemClock()
