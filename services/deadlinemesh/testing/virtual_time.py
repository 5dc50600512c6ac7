"""An event loop on a `VirtualClock`: when nothing is ready, time jumps to the next timer.

Nothing waits, so a test of minutes takes milliseconds, and always takes the same course. Such a
loop has no I/O: use `testing.memory` in place of sockets.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from deadlinemesh.deadline import VirtualClock

__all__ = ["VirtualTimeLoop", "run"]

T = TypeVar("T")


class NothingWillHappen(RuntimeError):
    """Every task waits, and no timer is set. On a real loop the test would hang."""


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise NothingWillHappen("every task waits and no timer is set")
        self._clock.advance(max(0.0, timeout))
        return []


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """asyncio's loop with `clock` in place of the system's clock."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(_JumpingSelector(clock))
        self.clock = clock
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self.clock.monotonic()


def run(main: Coroutine[Any, Any, T], clock: VirtualClock | None = None) -> T:
    """Run `main` to its end in virtual time, as `asyncio.run` does in real time."""
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(clock or VirtualClock())) as runner:
        return runner.run(main)


def clock() -> VirtualClock:
    """Return the clock of the running VirtualTimeLoop."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    return loop.clock
