"""Timers for distant deadlines, kept outside the event loop.

An event loop that has a timer makes the kernel program one each time it waits. For each message of
each stream, this costs more than everything else a scope does. Most deadlines are never reached. So
a distant deadline is only noted. Every CHECK_INTERVAL_S, a thread makes the event loop look at the noted
deadlines. Those that have come near get a timer then.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextvars import Context
from typing import Protocol

from deadlinemesh.deadline.clock import SYSTEM_CLOCK, Clock
from deadlinemesh.deadline.context import DeadlineContext

__all__ = ["CHECK_INTERVAL_S", "NEAR", "CoarseTimers", "Waiting", "coarse_timers_of"]

CHECK_INTERVAL_S = 0.1
"""Seconds between two looks at the noted deadlines."""

NEAR = 0.3
"""Seconds left when a deadline gets its timer. Longer than CHECK_INTERVAL_S, as a look may be late."""


class Waiting(Protocol):
    """Something that must be called at the deadline of its context."""

    context: DeadlineContext

    def set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        """Set a timer of `loop` for the deadline."""


class CoarseTimers:
    """The distant deadlines of one event loop.

    Use it only in that loop's thread. `remind` alone is for the watching thread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._far: set[Waiting] = set()
        self.forget: Callable[[Waiting], None] = self._far.discard
        """Stop watching. Does nothing if it was not watched."""

    def watch(self, waiting: Waiting, remaining: float, clock: Clock) -> None:
        """Call `waiting.set_timer` in time for its deadline, `remaining` seconds away.

        If the deadline is near, or the clock is virtual, it is called at once.
        """
        if remaining < NEAR or clock is not SYSTEM_CLOCK:
            waiting.set_timer(self._loop)
            return
        self._far.add(waiting)
        if not _THREAD.awake:
            _THREAD.wake()

    def look(self) -> None:
        """Set the timers of all deadlines that have come near."""
        near = time.monotonic() + NEAR
        for waiting in [waiting for waiting in self._far if waiting.context.absolute_deadline < near]:
            self._far.discard(waiting)
            waiting.set_timer(self._loop)

    def remind(self) -> bool:
        """Make the event loop look. Called by the watching thread. False if nothing is watched."""
        if not self._far:
            return False
        try:
            self._loop.call_soon_threadsafe(self.look, context=Context())
        except RuntimeError:  # the loop is closed: no deadline matters any more
            self._far.clear()
            return False
        return True


class _Thread:
    """The watching thread of the process. It sleeps while no deadline is watched."""

    def __init__(self) -> None:
        self.awake = False
        self._woken = threading.Event()
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        self.awake = True
        self._woken.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="coarse timers", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        idle = 0
        while True:
            time.sleep(CHECK_INTERVAL_S)
            idle = 0 if self._remind() else idle + 1
            if idle > _DOZE_AFTER:
                self._doze()

    def _doze(self) -> None:
        # The order matters. A deadline added after `awake` became False sets the event. One added
        # before that is found by the last look.
        self._woken.clear()
        self.awake = False
        if not self._remind():
            self._woken.wait()
        self.awake = True

    def _remind(self) -> bool:
        reminded = [timers.remind() for timers in tuple(_TIMERS.values())]
        return any(reminded)


_DOZE_AFTER = 20
"""Looks without any deadline before the thread sleeps. Waking it costs one call more than it costs
the process to keep it awake."""

_THREAD = _Thread()
_TIMERS: dict[asyncio.AbstractEventLoop, CoarseTimers] = {}


def coarse_timers_of(loop: asyncio.AbstractEventLoop) -> CoarseTimers:
    """The coarse timers of `loop`, made on first use."""
    if loop not in _TIMERS:
        for closed in [other for other in _TIMERS if other.is_closed()]:
            del _TIMERS[closed]
        _TIMERS[loop] = CoarseTimers(loop)
    return _TIMERS[loop]
