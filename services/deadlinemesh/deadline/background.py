"""Work that outlives its caller. It keeps the caller's tenant and has its own deadline.

Services start such work only here. The work runs in its own scope, so it is counted and drained.
It can start only under a current context, so a tenant is always charged for it.
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
    """A handle on background work. `Background.spawn` returns it."""

    def __init__(self, scope: Scope, task: asyncio.Task[T]) -> None:
        self._scope = scope
        self._task = task

    @property
    def context(self) -> DeadlineContext:
        """The caller's identity, with the deadline of this work."""
        return self._scope.context

    def stop(self, cause: Cause) -> None:
        """Begin to end the work because of `cause`. `wait` returns when it has ended."""
        self._scope.stop(cause)

    @property
    def cause(self) -> Cause | None:
        """The reason why the work was stopped; None if it was not."""
        return self._scope.cause

    def when_over(self, callback: Callable[[], object]) -> None:
        """Call `callback` when the work has ended, even if it was stopped before it began."""
        self._task.add_done_callback(lambda _: callback())

    async def wait(self) -> T:
        """Wait for the work and return its result.

        Raises the work's own error, or the `Stopped` error of the cause. Cancelling this wait does
        not end the work.
        """
        return await asyncio.shield(self._task)


class Background:
    """Starts background work in the hop's scopes.

        background = Background(scopes)
        task = background.spawn(refresh, until=clock.monotonic() + 60, name="refresh")
        await task.wait()

    So the work is counted and drained with the rest.
    """

    def __init__(self, scopes: Scopes) -> None:
        self._scopes = scopes
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Callable[[], Coroutine[Any, Any, T]], *, until: float, name: str) -> BackgroundTask[T]:
        """Start `work()` for the current tenant. It ends at the instant `until` at the latest.

        Raises NoDeadline if no context is current.
        """
        owner = current()
        scope = self._scopes.open(replace(owner, absolute_deadline=until, started_at=owner.clock.monotonic()))
        task = asyncio.get_running_loop().create_task(scope.run(work()), name=name, context=outside_any_scope())
        self._tasks.add(task)  # the event loop holds tasks only weakly
        task.add_done_callback(self._over)
        return BackgroundTask(scope, task)

    def _over(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, Stopped):
            _LOG.error("background work %s failed", task.get_name(), exc_info=error)
