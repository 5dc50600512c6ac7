"""Pauses for the event loop, to catch up after work that has blocked it.

grpc.aio takes one new call in each turn of the event loop. If handlers compute for some
milliseconds in every turn, calls queue up inside gRPC, unseen and in the order of arrival, until
their time is spent. A fair choice of the next call needs to see them first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

__all__ = ["LoopCatchUp"]

AFTER = 0.01
"""Seconds of blocking work. After these, the loop gets a pause."""

QUIET = 0.0005
"""Seconds without a new request that end the pause: the loop has caught up. A call takes about half
of this from gRPC's queue to its request."""

LONGEST = 0.05
"""Seconds of the longest pause."""


class LoopCatchUp:
    """Holds grants back while the loop catches up. `over` is called at the end of each pause."""

    def __init__(self, over: Callable[[], None]) -> None:
        self.taken = False
        """True during a pause: no grants then."""
        self._over = over
        self._held_up = 0.0
        self._claims = 0

    def claim(self) -> None:
        """Note a new request."""
        self._claims += 1

    def held_up(self, seconds: float) -> None:
        """Note work that blocked the loop for `seconds`. This may begin a pause."""
        self._held_up += seconds
        if self._held_up >= AFTER and not self.taken:
            self.taken, self._held_up = True, 0.0
            loop = asyncio.get_running_loop()
            began_at = loop.time()
            self._look(loop, self._claims, began_at, began_at, began_at + LONGEST)

    def _look(
        self, loop: asyncio.AbstractEventLoop, claims: int, quiet_since: float, looked_at: float, until: float
    ) -> None:
        now = loop.time()
        if self._claims != claims:
            quiet_since = now
        if now >= min(quiet_since + QUIET, until):
            self.taken = False
            self._over()
            return
        look_again = partial(self._look, loop, self._claims, quiet_since, now, until)
        # Look again in each turn, as timers are a millisecond late. A timer is needed only with a
        # clock that stands still between two turns.
        if now > looked_at:
            loop.call_soon(look_again)
        else:
            loop.call_later(QUIET, look_again)
