"""Ownership of a task tree: what a call starts ends with it, at the exact instant, whatever it does.

asyncio cancels once, and only the task it is asked to; children of `create_task` survive their parent. A `Scope` knows every
task that was started under it, by anyone, because the event loop's task factory tells it. When the time is spent, or the
caller leaves, it cancels them all, and again until they are gone. What is still alive after REPORT_ORPHAN_AFTER is an orphan:
reported, and cancelled on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass
from typing import Any, TypeVar

from deadlinemesh.deadline.context import _CURRENT, DeadlineContext
from deadlinemesh.errors import Cause, ClientCancelled, DeadlineSpent, Draining, InternalFailure, Stopped

__all__ = ["CANCEL_AGAIN_AFTER", "REPORT_ORPHAN_AFTER", "Orphan", "Scope", "Scopes", "current_scope", "own_tasks"]

T = TypeVar("T")

CANCEL_AGAIN_AFTER = 0.05
"""Seconds between two rounds of cancellation: long enough for an orderly close, short beside any budget."""

REPORT_ORPHAN_AFTER = 0.25
"""Seconds after which work that was told to stop counts as an orphan (the deadline contract, point 5)."""

_EXPIRES_WITH = 0.005
"""A cancel from outside this close to the deadline, in seconds, is the peer's timer for the same deadline: so far may a
deadline move between hops (the deadline contract, point 2)."""

_SCOPE: ContextVar[Scope | None] = ContextVar("deadline_scope", default=None)


@dataclass(frozen=True, slots=True)
class Orphan:
    """A task that lives on after its scope was stopped."""

    context: DeadlineContext
    hop: str
    task: str
    """What asyncio knows of the task: its name and where its coroutine stands."""
    age: float
    """Seconds since the scope was stopped."""


class Scope:
    """Runs one coroutine and owns all that it starts. Made by `Scopes.open`; good for one run."""

    def __init__(self, context: DeadlineContext, owner: Scopes) -> None:
        self.context = context
        self.cause: Cause | None = None
        """Why the scope was stopped; None while it was not."""
        self.caller_left = False
        """Whether the caller itself ended its wait, so that nobody is there to be told anything."""
        self.on_overdue: Callable[[], None] | None = None
        """Called once, REPORT_ORPHAN_AFTER after the stop, if the work itself, which `run` waits for, still lives."""
        self._owner = owner
        self._main: _OwnedTask | None = None
        self._outer: Scope | None = None
        self._over = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closers: set[Callable[[], object]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._emptied: asyncio.Future[None] | None = None
        self._ending_since: float | None = None
        self._overdue = False

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` in the calling task and return its result.

        Raises what `work` raises; or, when the scope was stopped, the `Stopped` error of the cause. It returns when all that
        was started under the scope is gone, or REPORT_ORPHAN_AFTER after its end if something will not go: that something is
        cancelled on in the background.
        """
        if self.context.is_expired:
            self.stop(Cause.DEADLINE_SPENT)
        if self.cause is not None:
            self._never_begin(work)
            raise self.stopped()
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        if not isinstance(task, _OwnedTask):
            own_tasks(loop)
            try:
                return await loop.create_task(self.run(work))
            finally:
                if self._main is None and not self._over:  # cancelled before its first step
                    self._never_begin(work)
        self._main, self._outer, cancels = task, task.runs, task.cancelling()
        task.runs = self
        context_token, scope_token = _CURRENT.set(self.context), _SCOPE.set(self)
        self._timer = loop.call_later(self.context.remaining, self.stop, Cause.DEADLINE_SPENT)
        failure: BaseException | None = None
        try:
            result = await work
        except BaseException as error:
            failure = error
        self._main, self._over = None, True
        if self._tasks or self._closers:
            await self._end_what_is_left(task)
        if not self._tasks:
            self._timer.cancel()
            self._owner._closed(self)
        _SCOPE.reset(scope_token)
        _CURRENT.reset(context_token)
        task.runs = self._outer
        if self.cause is not None:
            while task.cancelling() > cancels:
                task.uncancel()  # it goes on as the error of its cause, not as a cancellation
            if getattr(task, "_must_cancel", False):  # the work stopped its own scope and never waited after that
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(0)
            raise self.stopped() from (None if isinstance(failure, asyncio.CancelledError) else failure)
        if isinstance(failure, asyncio.CancelledError) and task.cancelling() == cancels:
            # The work raised it by itself, nobody cancelled it: grpc.aio would send no status for that.
            raise InternalFailure("the handler cancelled itself", hop=self._owner.hop) from failure
        if failure is not None:
            raise failure
        return result

    def stop(self, cause: Cause) -> None:
        """End everything under the scope because of `cause`. The first cause stands; a scope that is over ignores it.

        Work that has not begun yet will not.
        """
        if self.cause is None and not self._over:
            self.cause = cause
            if self._main is not None:
                self._end()

    def adopt(self, task: asyncio.Task[Any]) -> None:
        """Own `task` too. The task factory calls this for each task born under the scope."""
        if self._over and not self._tasks:
            # Born after the end, from a callback set up before it. It may clean up until the first round of cancellation.
            self._owner._reopened(self)
            self._ending_since, self._overdue = self.context.clock.monotonic(), False
            self._timer = asyncio.get_running_loop().call_later(CANCEL_AGAIN_AFTER, self._cancel_again)
        self._tasks.add(task)
        task.add_done_callback(self._gone)

    def own(self, close: Callable[[], object]) -> Callable[[], None]:
        """Own something that is not a task, such as an open stream: `close` is called when the scope ends or is stopped.

        Returns what disowns it again, to be called when it has ended by itself.
        """
        self._closers.add(close)
        return lambda: self._closers.discard(close)

    def cancelled_by(self, canceller: asyncio.Task[Any] | None) -> None:
        """The task that runs the scope is being cancelled by `canceller`, None meaning a callback of the event loop.

        A task outside the scope is the caller leaving. Callbacks are timeouts and task groups inside the work, which know
        how to take their cancellation back.
        """
        if canceller is None or canceller is self._main or canceller in self._tasks:
            return
        self.caller_left = True
        self.stop(self._why_left())
        if self._outer is not None:
            self._outer.cancelled_by(canceller)

    def _why_left(self) -> Cause:
        return Cause.DEADLINE_SPENT if self.context.remaining <= _EXPIRES_WITH else Cause.CLIENT_CANCELLED

    def _never_begin(self, work: Coroutine[Any, Any, Any]) -> None:
        work.close()
        self._over = True
        self._owner._closed(self)

    async def _end_what_is_left(self, task: asyncio.Task[Any]) -> None:
        if self._ending_since is None:
            self._end()
        while self._tasks and not self._overdue:
            self._emptied = asyncio.get_running_loop().create_future()
            try:
                await self._emptied
            except asyncio.CancelledError:
                if self.cause is None:
                    self.cause = self._why_left()

    def _end(self) -> None:
        self._ending_since = self.context.clock.monotonic()
        self._cancel_all()

    def _cancel_all(self) -> None:
        assert self._timer is not None
        self._timer.cancel()
        if self._main is not None:
            asyncio.Task.cancel(self._main)
        for task in tuple(self._tasks):
            task.cancel()
        loop = asyncio.get_running_loop()
        while self._closers:
            try:
                self._closers.pop()()
            except Exception as error:
                loop.call_exception_handler({"message": f"{self!r} could not close what it owns", "exception": error})
        self._timer = loop.call_later(CANCEL_AGAIN_AFTER, self._cancel_again)

    def _cancel_again(self) -> None:
        assert self._ending_since is not None
        age = self.context.clock.monotonic() - self._ending_since
        self._cancel_all()
        # The round that is nearest, lest a timer a hair too early put it off to the next.
        if age > REPORT_ORPHAN_AFTER - CANCEL_AGAIN_AFTER / 2 and not self._overdue:
            self._overdue = True
            self._wake_up()
            alive: set[asyncio.Task[Any]] = self._tasks if self._main is None else {self._main, *self._tasks}
            for task in alive:
                self._owner._report(Orphan(self.context, self._owner.hop, _describe(task), age))
            if self._main is not None and self.on_overdue is not None:
                self.on_overdue()

    def _gone(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not self._tasks and self._main is None:
            if self._timer is not None:
                self._timer.cancel()
            self._owner._closed(self)
            self._wake_up()

    def _wake_up(self) -> None:
        if self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    def stopped(self) -> Stopped:
        """The error of the cause."""
        hop, seconds = self._owner.hop, self.context.granted
        if self.cause is Cause.DEADLINE_SPENT:
            return DeadlineSpent(f"the {seconds:.3f} s granted to {hop or 'this work'} are spent", hop=hop)
        if self.cause is Cause.DRAINING:
            return Draining(f"{hop or 'this work'} was stopped by a shutdown", hop=hop)
        return ClientCancelled("the caller cancelled or went away", hop=hop)

    def left(self) -> Stopped:
        """The error for a caller that is found to have left, before anything has cancelled the scope."""
        self.caller_left = True
        if self.cause is None:
            self.cause = self._why_left()
        return self.stopped()

    def __repr__(self) -> str:
        return f"<Scope {self._owner.hop} run={self.context.run_id} tasks={len(self._tasks)} cause={self.cause}>"


class Scopes:
    """The live scopes of one hop: what drains, what is counted, what must be empty at the end."""

    def __init__(self, hop: str, on_orphan: Callable[[Orphan], None] = lambda orphan: None) -> None:
        self.hop = hop
        self._on_orphan = on_orphan
        self._live: set[Scope] = set()
        self._emptied: asyncio.Event | None = None

    def open(self, context: DeadlineContext) -> Scope:
        """A new scope for `context`. It counts as live until all its tasks are gone."""
        scope = Scope(context, self)
        self._live.add(scope)
        return scope

    def stop_all(self, cause: Cause) -> None:
        """Stop every live scope."""
        for scope in tuple(self._live):
            scope.stop(cause)

    async def emptied(self) -> None:
        """Return once no scope is live."""
        while self._live:
            self._emptied = self._emptied or asyncio.Event()
            self._emptied.clear()
            await self._emptied.wait()

    def _report(self, orphan: Orphan) -> None:
        self._on_orphan(orphan)

    def _reopened(self, scope: Scope) -> None:
        self._live.add(scope)

    def _closed(self, scope: Scope) -> None:
        self._live.discard(scope)
        if not self._live and self._emptied is not None:
            self._emptied.set()

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Scope]:
        return iter(tuple(self._live))


def current_scope() -> Scope | None:
    """The scope that owns what the running task starts; None outside any."""
    return _SCOPE.get()


def outside_any_scope() -> Context:
    """A copy of the current context in which no scope adopts what is started."""
    outside = copy_context()
    outside.run(_SCOPE.set, None)
    return outside


class _OwnedTask(asyncio.Task[Any]):
    """A task that tells the scope it runs who cancels it, so that code which swallows a cancellation cannot hide it.

    A task of its own for each scope would tell as much and cost every call two more turns of the event loop.
    """

    runs: Scope | None = None

    def cancel(self, msg: Any | None = None) -> bool:
        if self.runs is not None and not self.done():
            self.runs.cancelled_by(asyncio.current_task(self.get_loop()))  # which may have stopped running
        return super().cancel(msg)


def own_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Install the task factory by which scopes know every task on `loop`. Raises RuntimeError if it has another factory."""
    if loop.get_task_factory() is not _adopting_factory:
        if loop.get_task_factory() is not None:
            raise RuntimeError("the event loop has a task factory already: scopes need their own to own every task")
        loop.set_task_factory(_adopting_factory)  # type: ignore[arg-type]  # typeshed asks for a generic protocol


def _adopting_factory(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any
) -> asyncio.Task[Any]:
    task = _OwnedTask(coroutine, loop=loop, **options)
    context: Context | None = options.get("context")
    scope = _SCOPE.get() if context is None else context.get(_SCOPE)
    if scope is not None:
        scope.adopt(task)
    return task


def _describe(task: asyncio.Task[Any]) -> str:
    place = ""
    step: Any = task.get_coro()
    while step is not None:  # down the chain of awaits, to the last frame that is not asyncio's own
        frame = getattr(step, "cr_frame", None)
        if frame is not None and not frame.f_globals.get("__name__", "").startswith("asyncio."):
            place = f" at {frame.f_code.co_qualname}:{frame.f_lineno}"
        step = getattr(step, "cr_await", None)
    return f"{task.get_name()}{place}"
