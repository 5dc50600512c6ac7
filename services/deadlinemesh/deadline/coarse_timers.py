"""Keeps watch for deadlines that are far away.

An event loop with any timer at all has the kernel program one each time that it waits, and that costs each message of each stream
more than everything else a scope does. Most deadlines are never reached. So one that is far away is only noted, and a thread
has the event loop look, every now and then, which have come near enough to need a timer.
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

__all__ = ["LOOK_EVERY", "NEAR", "CoarseTimers", "Waiting", "coarse_timers_of"]

LOOK_EVERY = 0.1
"""Seconds between two looks."""

NEAR = 0.3
"""Seconds before its deadline that a timer is set. As it is longer than LOOK_EVERY, a look may well come late."""


class Waiting(Protocol):
    """What has a deadline: that of its context."""

    context: DeadlineContext

    def set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have the event loop call at the deadline."""


class CoarseTimers:
    """Watches for one event loop. Not to be used from another thread than that one's."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._far: set[Waiting] = set()
        self.forget: Callable[[Waiting], None] = self._far.discard
        """Watch no longer; nothing if it was not watched."""

    def watch(self, waiting: Waiting, remaining: float, clock: Clock) -> None:
        """Have `waiting` set a timer in time for its deadline, `remaining` seconds away. On a virtual clock: now."""
        if remaining < NEAR or clock is not SYSTEM_CLOCK:
            waiting.set_timer(self._loop)
            return
        self._far.add(waiting)
        if not _THREAD.awake:
            _THREAD.wake()

    def look(self) -> None:
        """Have all that came near set their timers."""
        near = time.monotonic() + NEAR
        for waiting in [waiting for waiting in self._far if waiting.context.absolute_deadline < near]:
            self._far.discard(waiting)
            waiting.set_timer(self._loop)

    def remind(self) -> bool:
        """From the thread: have the event loop look. False if there is nothing to look for."""
        if not self._far:
            return False
        try:
            self._loop.call_soon_threadsafe(self.look, context=Context())
        except RuntimeError:  # the loop is closed: nobody waits any more
            self._far.clear()
            return False
        return True


class _Thread:
    """Reminds every lookout of the process, and sleeps while there is nothing to look for."""

    def __init__(self) -> None:
        self.awake = False
        self._woken = threading.Event()
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        self.awake = True
        self._woken.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="lookout", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        idle = 0
        while True:
            time.sleep(LOOK_EVERY)
            idle = 0 if self._remind() else idle + 1
            if idle > _DOZE_AFTER:
                self._doze()

    def _doze(self) -> None:
        # In this order: whoever comes after `awake` fell sets the event, and whoever came before is found by the last look.
        self._woken.clear()
        self.awake = False
        if not self._remind():
            self._woken.wait()
        self.awake = True

    def _remind(self) -> bool:
        reminded = [lookout.remind() for lookout in tuple(_LOOKOUTS.values())]
        return any(reminded)


_DOZE_AFTER = 20
"""Looks at nothing before the thread falls asleep: to wake it costs a call more than the thread costs the process."""

_THREAD = _Thread()
_LOOKOUTS: dict[asyncio.AbstractEventLoop, CoarseTimers] = {}


def coarse_timers_of(loop: asyncio.AbstractEventLoop) -> CoarseTimers:
    """The lookout of `loop`."""
    if loop not in _LOOKOUTS:
        for closed in [other for other in _LOOKOUTS if other.is_closed()]:
            del _LOOKOUTS[closed]
        _LOOKOUTS[loop] = CoarseTimers(loop)
    return _LOOKOUTS[loop]
