"""A part of the remaining time for one block of code.

`asyncio.timeout` cancels only once, so a block that swallows one `CancelledError` would run on.
This module cancels again until the block is left. Everything inside the block, outbound calls
included, sees the narrower deadline.
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
    """Cancels the running task repeatedly until its block is left, then takes the cancels back."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a block that is cut at an instant needs a running task")
        self._task: asyncio.Task[Any] | None = task
        self._cancels_before = task.cancelling()
        self._cancels = 0
        self._timer: asyncio.TimerHandle | None = None

    def cut(self) -> None:
        """Cancel the task now, and again every CANCEL_AGAIN_AFTER."""
        assert self._task is not None
        self._cancels += 1
        self._task.cancel()
        self._timer = asyncio.get_running_loop().call_later(CANCEL_AGAIN_AFTER, self.cut)

    def is_why(self, kind: type[BaseException] | None) -> bool:
        """Stop cancelling as the block is left. True if it caused the exception of type `kind`.

        False if a cancel from outside came as well: that one must propagate. The exception may be
        of another type than our cancel. For example, a task group raises its own error if a child
        fails while it is cancelled. Such a block still ended for lack of time.
        """
        if self._timer is not None:
            self._timer.cancel()
        # A task keeps its final error and the frames in its traceback, and one of those refers to
        # us. Drop our reference to the task, to break the cycle.
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
    """The context manager of `narrowed_at` and `narrowed_after`. Enter it once."""

    def __init__(self, context: DeadlineContext, phase: str) -> None:
        self.context = context
        self.expired = False
        """True if the deadline of this block passed while the block ran."""
        self._phase = phase
        self._cutting: RepeatedCancel
        self._timer: asyncio.TimerHandle | None = None
        self._timers: CoarseTimers
        self._token: Token[tuple[DeadlineContext | None, Scope | None]] | None = None

    async def __aenter__(self) -> Self:
        self._cutting = RepeatedCancel()
        self._token = HERE.set((self.context, current_scope()))
        self._timers = coarse_timers_of(asyncio.get_running_loop())
        self._timers.watch(self, self.context.remaining, self.context.clock)
        return self

    def set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        """Set a timer of `loop` that ends the block at its deadline."""
        self._timer = loop.call_at(self.context.absolute_deadline, self._spend)

    def _spend(self) -> None:
        self.expired = True
        self._cutting.cut()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._token is not None
        if self._timer is None:
            self._timers.forget(self)
        else:
            self._timer.cancel()
        HERE.reset(self._token)
        del traceback
        if self._cutting.is_why(kind):
            if isinstance(error, asyncio.CancelledError):
                error.__traceback__ = None  # breaks a cycle, see Scope.__aexit__
            raise DeadlineSpent(f"the time for {self._phase or 'this step'} is spent", phase=self._phase) from (
                None if isinstance(error, asyncio.CancelledError) else error
            )


def narrowed_at(instant: float, phase: str = "") -> Narrowed:
    """Limit a block to `instant`, or to the current deadline if that is earlier.

    Raises NoDeadline if no context is current. The block raises DeadlineSpent, with the name
    `phase`, when its time is spent.
    """
    return Narrowed(current().tightened_to(instant), phase)


def narrowed_after(seconds: float, phase: str = "") -> Narrowed:
    """Limit a block to `seconds`, or to the current deadline if that is earlier.

        async with narrowed_after(2.0, "lookup"):
            await fetch()

    Raises the errors of `narrowed_at`.
    """
    return Narrowed(current().tightened_after(seconds), phase)
