"""Lets the event loop catch up between pieces of work that hold it up.

grpc.aio takes one new call in each turn of the event loop. Where handlers compute for some milliseconds in every turn, calls queue
up inside gRPC, unseen and in the order of their arrival, until each has spent its time there. Whoever decides what comes next must
have seen them first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["Breath"]

AFTER = 0.01
"""Seconds of such work after which the loop is given a breath."""

QUIET = 0.0005
"""Seconds without a new claim after which the loop has caught up: about twice what it takes from gRPC's queue to a claim."""

LONGEST = 0.05
"""Seconds after which work goes on in any case."""


class Breath:
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
            self._wait(loop, loop.time() + LONGEST)

    def _wait(self, loop: asyncio.AbstractEventLoop, until: float) -> None:
        loop.call_later(QUIET, self._look, loop, until, self._claims)

    def _look(self, loop: asyncio.AbstractEventLoop, until: float, claims: int) -> None:
        if self._claims != claims and loop.time() < until:
            self._wait(loop, until)
        else:
            self.taken = False
            self._over()
