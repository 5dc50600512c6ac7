"""Work that outlives its caller: it keeps its owner's tenant and has a deadline of its own, from birth to completion.

There is no other way to start a task that a scope does not end, and none at all without a current context, so nothing can run
on nobody's account.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, Generic, TypeVar

from deadlinemesh.deadline.context import DeadlineContext, current
from deadlinemesh.deadline.scope import Scope, Scopes, outside_any_scope
from deadlinemesh.errors import Cause, Stopped

__all__ = ["Background", "BackgroundTask"]

T = TypeVar("T")

_LOG = logging.getLogger("deadlinemesh.deadline")


class BackgroundTask(Generic[T]):
    """A handle on background work."""

    def __init__(self, scope: Scope, task: asyncio.Task[T]) -> None:
        self._scope = scope
        self._task = task

    @property
    def context(self) -> DeadlineContext:
        """The owner's identity with the work's own deadline."""
        return self._scope.context

    def stop(self, cause: Cause) -> None:
        """End the work; `wait` tells when it has ended."""
        self._scope.stop(cause)

    @property
    def cause(self) -> Cause | None:
        """Why the work was stopped; None while it was not."""
        return self._scope.cause

    def when_over(self, callback: Callable[[], object]) -> None:
        """Have `callback` called when the work has ended, also when it was stopped before it ever began."""
        self._task.add_done_callback(lambda _: callback())

    async def wait(self) -> T:
        """The work's result. Raises what it raised, or the `Stopped` error of the cause. Leaving early does not end it."""
        return await asyncio.shield(self._task)


class Background:
    """Spawns background work into the hop's scopes, so that it is counted and drained with the rest."""

    def __init__(self, scopes: Scopes) -> None:
        self._scopes = scopes
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Callable[[], Coroutine[Any, Any, T]], *, until: float, name: str) -> BackgroundTask[T]:
        """Start `work()` for the current tenant, to end at the instant `until` at the latest.

        Raises NoDeadline where no context is current.
        """
        owner = current()
        scope = self._scopes.open(replace(owner, absolute_deadline=until, started_at=owner.clock.monotonic()))
        task = asyncio.get_running_loop().create_task(scope.run(work()), name=name, context=outside_any_scope())
        self._tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._over)
        return BackgroundTask(scope, task)

    def _over(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, Stopped):
            _LOG.error("background work %s failed", task.get_name(), exc_info=error)
