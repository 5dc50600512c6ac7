"""Work that can wait until the event loop has nothing more urgent.

When hundreds of runs end together, each has spans to end, events to write and memory to free. Such
work, if done between the ends of runs, makes all the other runs end later.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from contextvars import Context

__all__ = ["Deferred"]


class Deferred:
    """A queue of calls, made in order and in small batches while the event loop is calm.

        deferred = Deferred()
        deferred(write_event, event)

    The event loop is calm if it is not late and no work has been added since the last look. Work
    that has waited for half a second is done anyway.
    """

    def __init__(self) -> None:
        self._work: deque[tuple[float, Callable[..., object], tuple[object, ...]]] = deque()
        """The waiting calls, each with the loop time of its arrival."""
        self._waiting: asyncio.Handle | None = None
        self._due_at = 0.0
        """The loop time of the next look."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._left = 0
        """The number of calls that waited after the last look."""

    def __call__(self, work: Callable[..., object], *arguments: object) -> None:
        """Call `work(*arguments)` soon. Its errors go to the event loop's exception handler."""
        loop = self._loop
        if self._waiting is None or loop is None or loop.is_closed():  # a closed one has no timers
            # get_running_loop asks the system if this process was forked: too dear for every call.
            self._loop = loop = asyncio.get_running_loop()
            self._wait(loop)
        self._work.append((loop.time(), work, arguments))

    def free(self, *things: object) -> None:
        """Drop the references to `things` soon. For objects that take long to free."""
        self(_nothing, *things)

    def flush(self) -> None:
        """Make all waiting calls now."""
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        self._do(len(self._work), came_by=math.inf)

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        # An empty context: a copy of one call's context would be passed on from turn to turn.
        self._due_at = loop.time() + _PAUSE
        self._waiting = loop.call_at(self._due_at, self._turn, loop, context=Context())

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        # If the time has passed, uvloop's call_at returns a plain handle that has no instant.
        due_at, self._waiting = self._due_at, None
        now = loop.time()
        try:
            calm = len(self._work) == self._left and now - due_at < _BEHIND
            # A longer queue gets larger batches, so it cannot grow for ever.
            self._do(max(_PIECE, len(self._work) // 16), came_by=now if calm else now - _PATIENCE)
        finally:
            self._left = len(self._work)
            if self._work:
                self._wait(loop)

    def _do(self, most: int, came_by: float) -> None:
        for _ in range(min(most, len(self._work))):
            if self._work[0][0] > came_by:
                break
            _, work, arguments = self._work.popleft()
            work(*arguments)


def _nothing(*_: object) -> None:
    pass


_PAUSE = 0.01
"""Seconds before the first batch, and between two batches."""
_BEHIND = 0.003
"""Seconds of lateness of a timer. From this on, the event loop counts as busy."""
_PATIENCE = 0.5
"""Seconds that a call may wait for a calm event loop. Then it is made anyway."""
_PIECE = 16
"""Calls in the smallest batch: about half a millisecond's work of spans, lines or freed runs."""
