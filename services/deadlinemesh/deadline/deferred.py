"""Work that can wait until the event loop has nothing more urgent.

When hundreds of runs end together, each has its spans to end, its events to write and its memory to give back, and whatever is
done of that in between makes all the others end later.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from contextvars import Context

__all__ = ["Deferred"]


class Deferred:
    """Does what it is given, in order: in small pieces, and not while more keeps coming or the event loop is behind."""

    def __init__(self) -> None:
        self._work: deque[tuple[float, Callable[..., object], tuple[object, ...]]] = deque()
        """With the instant at which each came."""
        self._waiting: asyncio.Handle | None = None
        self._due_at = 0.0
        """When it should look next."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._left = 0
        """How much there was to do when it last looked."""

    def __call__(self, work: Callable[..., object], *arguments: object) -> None:
        """Do `work(*arguments)` soon. What it raises goes to the event loop's exception handler."""
        loop = self._loop
        if self._waiting is None or loop is None or loop.is_closed():  # one that is closed has dropped its timers
            # Which asks the system whether this process was forked: not for each piece.
            self._loop = loop = asyncio.get_running_loop()
            self._wait(loop)
        self._work.append((loop.time(), work, arguments))

    def free(self, *things: object) -> None:
        """Let go of `things` soon: where freeing what nobody else has takes long."""
        self(_nothing, *things)

    def flush(self) -> None:
        """Do now all that is left."""
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        self._do(len(self._work), came_by=math.inf)

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        # In a context of its own: a copy of one call's would be passed on from turn to turn.
        self._due_at = loop.time() + _PAUSE
        self._waiting = loop.call_at(self._due_at, self._turn, loop, context=Context())

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        # A timer that is set too late is a plain handle to uvloop, which does not know its instant.
        due_at, self._waiting = self._due_at, None
        now = loop.time()
        try:
            calm = len(self._work) == self._left and now - due_at < _BEHIND
            # The longer the queue, the larger the pieces: it cannot grow for ever.
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
"""Seconds before the first piece, and between two."""
_BEHIND = 0.003
"""Seconds that a timer is late by when the event loop has much else to do."""
_PATIENCE = 0.5
"""Seconds after which what has waited for so long is done even so."""
_PIECE = 16
"""Spans, lines or runs' memory that is done with at once: about half a millisecond's work."""
