"""Giving up what seems to hang, while there is something better to do.

This is no deadline: what is inside keeps the caller's, and is not told how patient its caller is. Whether to give it up is
decided at the last moment, since what is slow is better left alone where nothing could take its place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from deadlinemesh.deadline.coarse_timers import CoarseTimers, coarse_timers_of
from deadlinemesh.deadline.context import DeadlineContext, current
from deadlinemesh.deadline.narrowed import RepeatedCancel
from deadlinemesh.errors import DeadlineSpent

__all__ = ["AttemptHung", "SilenceTimeout"]


class AttemptHung(DeadlineSpent):
    """The attempt was silent for too long and was given up in favour of another."""


class SilenceTimeout:
    """A block that is given up after a silence, if `better_given_up` says so when the silence has lasted. Enter it once.

    `better_given_up` is called by the event loop: no context is current. Raises AttemptHung when the block was given up.
    """

    def __init__(self, better_given_up: Callable[[], bool]) -> None:
        self.context: DeadlineContext
        """Only its deadline counts: when patience ends."""
        self.gave_up = False
        """Whether the block was given up."""
        self._better_given_up = better_given_up
        self._cutting: RepeatedCancel
        self._lookout: CoarseTimers
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        self._cutting = RepeatedCancel()
        self._lookout = coarse_timers_of(asyncio.get_running_loop())
        return self

    def lasts(self, seconds: float) -> None:
        """Be patient for so many seconds from now, whatever was said before."""
        self.is_endless()
        here = current()
        self.context = here.tightened_after(seconds)
        if self.context is not here and not self.gave_up:
            self._lookout.watch(self, self.context.remaining, here.clock)

    def is_endless(self) -> None:
        """Do not give the block up any more."""
        if self._timer is None:
            self._lookout.forget(self)
        else:
            self._timer.cancel()
            self._timer = None

    def set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have `loop` end the patience in time."""
        self._timer = loop.call_at(self.context.absolute_deadline, self._lost)

    def _lost(self) -> None:
        if self._better_given_up():
            self.gave_up = True
            self._cutting.cut()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.is_endless()
        if self._cutting.is_why(kind):
            raise AttemptHung("the attempt was silent for too long and was given up", phase="attempt") from (
                None if isinstance(error, asyncio.CancelledError) else error
            )
