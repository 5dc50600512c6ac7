"""Where instants come from."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod

__all__ = ["SYSTEM_CLOCK", "Clock", "SystemClock", "VirtualClock"]


class Clock(ABC):
    """A monotonic clock. The event loop's timers must run on the same one; asyncio's do on `SystemClock`."""

    @abstractmethod
    def monotonic(self) -> float:
        """Now, in seconds from an arbitrary origin that never changes."""


class SystemClock(Clock):
    """`time.monotonic`, which is also asyncio's clock."""

    monotonic = staticmethod(time.monotonic)


class VirtualClock(Clock):
    """A clock that only moves when told to, so that nothing about time needs waiting.

    `testing.virtual_time` has an event loop that runs on one and moves it from timer to timer.
    """

    def __init__(self, start: float = 0.0) -> None:
        self._now = start

    def monotonic(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass. Raises ValueError when negative: monotonic clocks do not go back."""
        if seconds < 0:
            raise ValueError(f"a monotonic clock cannot go back by {-seconds} s")
        self._now += seconds

    def __repr__(self) -> str:
        return f"VirtualClock({self._now})"


SYSTEM_CLOCK = SystemClock()
