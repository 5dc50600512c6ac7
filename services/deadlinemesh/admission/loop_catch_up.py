"""Lets the event loop catch up between pieces of work that hold it up.

grpc.aio takes one new call in each turn of the event loop. Where handlers compute for some milliseconds in every turn, calls queue
up inside gRPC, unseen and in the order of their arrival, until each has spent its time there. Whoever decides what comes next must
have seen them first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

__all__ = ["LoopCatchUp"]

AFTER = 0.01
"""Seconds of such work after which the loop is given a breath."""

QUIET = 0.0005
"""Seconds without a new claim after which the loop has caught up: about twice what it takes from gRPC's queue to a claim."""

LONGEST = 0.05
"""Seconds after which work goes on in any case."""


class LoopCatchUp:
    """Holds grants back while the loop catches up; `over` is called when they may go on."""

    def __init__(self, over: Callable[[], None]) -> None:
        self.taken = False
        """Whether grants have to wait just now."""
        self._over = over
        self._held_up = 0.0
        self._claims = 0

    def claim(self) -> None:
        """A claim has come."""
        self._claims += 1

    def held_up(self, seconds: float) -> None:
        """The loop could not turn for so long."""
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
        # Turn after turn, as timers are a millisecond late. Only a clock that stands still between two turns needs one.
        if now > looked_at:
            loop.call_soon(look_again)
        else:
            loop.call_later(QUIET, look_again)
