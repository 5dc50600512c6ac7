"""A share of the current time for one block of code.

`asyncio.timeout` would cancel once, and one swallowed `CancelledError` would let the block run on. This one cancels again
until the block is left, and everything inside the block, outbound calls included, sees the narrower deadline.
"""

from __future__ import annotations

import asyncio
from contextvars import Token
from types import TracebackType
from typing import Any, Self

from deadlinemesh.deadline.cancel_rounds import CANCEL_AGAIN_AFTER
from deadlinemesh.deadline.coarse_timers import CoarseTimers, coarse_timers_of
from deadlinemesh.deadline.context import HERE, DeadlineContext, current
from deadlinemesh.deadline.scope import Scope, current_scope
from deadlinemesh.errors import DeadlineSpent

__all__ = ["Narrowed", "RepeatedCancel", "narrowed_after", "narrowed_at"]


class RepeatedCancel:
    """Cancels the running task, and again until the block that it is in is left; and takes that back in the end."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a block that is cut at an instant needs a running task")
        self._task: asyncio.Task[Any] | None = task
        self._cancels_before = task.cancelling()
        self._cancels = 0
        self._timer: asyncio.TimerHandle | None = None

    def cut(self) -> None:
        """Cancel it now."""
        assert self._task is not None
        self._cancels += 1
        self._task.cancel()
        self._timer = asyncio.get_running_loop().call_later(CANCEL_AGAIN_AFTER, self.cut)

    def is_why(self, kind: type[BaseException] | None) -> bool:
        """End the cutting as the block is left. Whether it is the reason that an exception of this `kind` leaves the block.

        A cancel from outside that came as well must go on. And a block that turned our cancel into an error of another kind, as a
        task group does whose children fail while they are being cancelled, ended for lack of time all the same.
        """
        if self._timer is not None:
            self._timer.cancel()
        # A task keeps the error that it ends with, and every frame on its way: one of them knows us.
        task, self._task = self._task, None
        assert task is not None
        pending = self._cancels_before
        for _ in range(self._cancels):
            pending = task.uncancel()
        return (
            self._cancels > 0
            and pending <= self._cancels_before
            and kind is not None
            and issubclass(kind, (asyncio.CancelledError, Exception))
        )


class Narrowed:
    """The context manager behind `narrowed_at` and `narrowed_after`; enter it with `async with`, once."""

    def __init__(self, context: DeadlineContext, phase: str) -> None:
        self.context = context
        self.expired = False
        """Whether this block's own deadline passed while it ran."""
        self._phase = phase
        self._cutting: RepeatedCancel
        self._timer: asyncio.TimerHandle | None = None
        self._lookout: CoarseTimers
        self._token: Token[tuple[DeadlineContext | None, Scope | None]] | None = None

    async def __aenter__(self) -> Self:
        self._cutting = RepeatedCancel()
        self._token = HERE.set((self.context, current_scope()))
        self._lookout = coarse_timers_of(asyncio.get_running_loop())
        self._lookout.watch(self, self.context.remaining, self.context.clock)
        return self

    def set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have `loop` end the block at its deadline."""
        self._timer = loop.call_at(self.context.absolute_deadline, self._spend)

    def _spend(self) -> None:
        self.expired = True
        self._cutting.cut()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._token is not None
        if self._timer is None:
            self._lookout.forget(self)
        else:
            self._timer.cancel()
        HERE.reset(self._token)
        del traceback
        if self._cutting.is_why(kind):
            if isinstance(error, asyncio.CancelledError):
                error.__traceback__ = None  # see Scope
            raise DeadlineSpent(f"the time for {self._phase or 'this step'} is spent", phase=self._phase) from (
                None if isinstance(error, asyncio.CancelledError) else error
            )


def narrowed_at(instant: float, phase: str = "") -> Narrowed:
    """Run a block until `instant` at the latest, or until the current deadline if that is earlier.

    Raises NoDeadline where no context is current, and DeadlineSpent, naming `phase`, when the block's time was spent.
    """
    return Narrowed(current().tightened_to(instant), phase)


def narrowed_after(seconds: float, phase: str = "") -> Narrowed:
    """Run a block for `seconds` at most, or until the current deadline if that is earlier. Raises as `narrowed_at`."""
    return Narrowed(current().tightened_after(seconds), phase)
