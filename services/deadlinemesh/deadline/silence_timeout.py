"""The end of an attempt that seems to hang, if the time has a better use.

This is no deadline: code in the block keeps the caller's deadline and does not see the timeout. The
decision is made when the timeout ends. If nothing can replace the attempt by then, it goes on, as
it may only be slow.
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
    """The attempt was silent for too long and was given up for something else."""


class SilenceTimeout:
    """A block that is given up after a silence, if `better_given_up` then returns True.

        async with SilenceTimeout(lambda: fallback.is_ready) as silence:
            silence.lasts(2.0)
            async for message in stream:
                silence.lasts(2.0)

    Enter it once. `better_given_up` may run without a current context. Raises AttemptHung if the
    block was given up.
    """

    def __init__(self, better_given_up: Callable[[], bool]) -> None:
        self.context: DeadlineContext
        """Its deadline is the end of the timeout. Nothing else of it is used."""
        self.gave_up = False
        """True if the block was given up."""
        self._better_given_up = better_given_up
        self._cutting: RepeatedCancel
        self._timers: CoarseTimers
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        self._cutting = RepeatedCancel()
        self._timers = coarse_timers_of(asyncio.get_running_loop())
        return self

    def lasts(self, seconds: float) -> None:
        """Set the timeout to `seconds` from now, in place of an earlier one.

        If the current deadline comes first, there is no timeout. Raises NoDeadline if no context is
        current.
        """
        self.is_endless()
        here = current()
        self.context = here.tightened_after(seconds)
        if self.context is not here and not self.gave_up:
            self._timers.watch(self, self.context.remaining, here.clock)

    def is_endless(self) -> None:
        """Remove the timeout. The block is not given up any more."""
        if self._timer is None:
            self._timers.forget(self)
        else:
            self._timer.cancel()
            self._timer = None

    def set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        """Set a timer of `loop` for the end of the timeout."""
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
