"""Ownership of a task tree: all tasks that a call starts end with it, at the exact deadline.

asyncio cancels only one task, and only once. Children made by `create_task` survive their parent. A
`Scope` knows every task started under it, because the event loop's task factory reports each one.
When the time is spent, or the caller leaves, the scope cancels them all, and again until they are
gone. A task still alive after REPORT_ORPHAN_AFTER is an orphan: it is reported, and cancelled on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from contextvars import Context, ContextVar, Token, copy_context
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from deadlinemesh.deadline.cancel_rounds import CANCEL_AGAIN_AFTER, CancelRound, CancelRounds
from deadlinemesh.deadline.coarse_timers import CoarseTimers, coarse_timers_of
from deadlinemesh.deadline.context import HERE, NOWHERE, DeadlineContext
from deadlinemesh.deadline.deferred import Deferred
from deadlinemesh.errors import Cause, ClientCancelled, DeadlineSpent, Draining, InternalFailure, Stopped

__all__ = ["CANCEL_AGAIN_AFTER", "REPORT_ORPHAN_AFTER", "Orphan", "Scope", "Scopes", "current_scope", "own_tasks"]

T = TypeVar("T")

REPORT_ORPHAN_AFTER = 0.25
"""Seconds after a stop. Work still alive then is an orphan (the deadline contract, point 5)."""

_BEHIND = 0.005
"""Seconds of lateness of a timer. From this on, the event loop counts as busy with other ends."""

_EXPIRES_WITH = 0.005
"""Seconds before the deadline. A cancel from outside within them counts as the peer's timer for the
same deadline, as a deadline may move so far between hops (the deadline contract, point 2). A
`Drifting` may add to it."""


class Drifting(Protocol):
    """An estimate of how far a deadline has moved on its way from the peer."""

    def drift(self, granted: float) -> float:
        """Seconds by which the deadline of a call of `granted` seconds may be later here."""
        ...


@dataclass(frozen=True, slots=True)
class Orphan:
    """A task, thread or process still alive after its scope was stopped."""

    context: DeadlineContext
    hop: str
    task: str
    """A description. A task: its name, and its coroutine's position in the code. A thread: the
    called function. A process: its id and program."""
    age: float
    """Seconds since the scope was stopped."""


_NOTHING: Any = frozenset()
"""A shared empty set. Most scopes own nothing, and two sets would be half of a scope's memory."""


class Scope:
    """Owns all tasks started in its `async with` block.

        async with scopes.open(context):
            await work()

    `Scopes.open` makes a scope. Use it for one block.
    """

    __slots__ = (
        *("_cancels_before", "_closers", "_emptied", "_ending_since", "_holding", "_outer", "_outermost", "_over"),
        *(
            "_overdue",
            "_owner",
            "_put_off",
            "_round",
            "_task",
            "_tasks",
            "_timer",
            "_token",
            "backlog",
            "caller_left",
            "cause",
            "context",
            "on_overdue",
        ),
    )

    def __init__(self, context: DeadlineContext, owner: Scopes) -> None:
        self.context = context
        self.cause: Cause | None = None
        """The reason why the scope was stopped; None if it was not."""
        self.caller_left = False
        """True if the caller itself ended its wait, so no status can reach it."""
        self.backlog: Drifting | None = None
        """The backlog of calls that this call waited in, as the wait may have moved its deadline.

        None if the deadline is the same as at the peer, within `_EXPIRES_WITH`.
        """
        self.on_overdue: Callable[[Scope], None] | None = None
        """Called once, REPORT_ORPHAN_AFTER the stop, if the block itself still runs."""
        self._owner = owner
        self._task: asyncio.Task[Any] | None = None
        self._cancels_before: int
        self._token: Token[tuple[DeadlineContext | None, Scope | None]]
        self._outer: Scope | None = None
        self._outermost: Scope | None = None
        self._over = False
        self._holding = False
        self._put_off = False
        self._tasks: set[asyncio.Task[Any]] = _NOTHING
        self._closers: set[Callable[[], object]] = _NOTHING
        self._timer: asyncio.TimerHandle | None = None
        self._round: CancelRound | None = None
        self._emptied: asyncio.Future[None] | None = None
        self._ending_since: float | None = None
        self._overdue = False

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` in the calling task, as the block of this scope, and return its result."""
        try:
            async with self:
                return await work
        finally:
            work.close()  # it may never have begun

    async def __aenter__(self) -> Self:
        """Begin the block. Until its end, the scope owns the work of the running task.

        Raises the `Stopped` error of the cause if the scope is stopped already, or the time is
        spent. Then nothing begins.
        """
        context, owner = self.context, self._owner
        remaining = context.absolute_deadline - context.clock.monotonic()
        if remaining <= 0:
            self.stop(Cause.DEADLINE_SPENT)
        if self.cause is not None:
            self._over = True
            owner._closed(self)
            raise self.stopped()
        # With the loop as argument, current_task need not ask the system if this process was
        # forked.
        task = asyncio.current_task(owner._loop)
        if task is None or owner._loop is None:
            owner._live_on(asyncio.get_running_loop())
            task = asyncio.current_task()
            assert task is not None
        outer = HERE.get()[1]
        if outer is not None and outer._task is task:
            self._outer, self._outermost = outer, outer._outermost or outer
            self.backlog = self.backlog or outer.backlog
        self._task, self._cancels_before = task, task.cancelling()
        task.cancel = self._cancel  # type: ignore[method-assign]
        owner._timers.watch(self, remaining, context.clock)
        self._token = HERE.set((context, self))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait until all tasks of the scope are gone, or REPORT_ORPHAN_AFTER at most.

        Tasks that do not end are cancelled on in the background. Raises the block's own error or,
        if the scope was stopped, the `Stopped` error of the cause.
        """
        task, cancels = self._task, self._cancels_before
        assert task is not None
        self._over = True
        if self._tasks or self._closers:
            await self._end_what_is_left()
        if not self._tasks:
            self._untime()
            self._owner._closed(self)
        HERE.reset(self._token)
        if self._outer is None:
            del task.cancel
        else:
            task.cancel = self._outer._cancel  # type: ignore[method-assign]
        del traceback
        if self.cause is not None:
            while task.cancelling() > cancels:
                task.uncancel()  # the error of the cause replaces the cancellation
            if getattr(task, "_must_cancel", False):  # the work stopped itself and did not await
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(0)
            # Garbage collections are rare, so reference cycles must not form. The task keeps the
            # error raised here, and the error keeps this frame: the frame must not keep the task. A
            # cancellation that passed a task group keeps itself and all frames on its way. These
            # hold much memory. Freeing it takes a tenth of the time that a run takes to end.
            self._task = None
            del task
            if isinstance(failure, asyncio.CancelledError):
                if self._owner._rounds.many:
                    self._owner._when_idle.free(failure.__traceback__)
                failure.__traceback__ = None
            raise self.stopped() from (None if isinstance(failure, asyncio.CancelledError) else failure)
        if isinstance(failure, asyncio.CancelledError) and task.cancelling() == cancels:
            # The work itself raised it, without a cancel. grpc.aio would send no status for that.
            raise InternalFailure("the handler cancelled itself", hop=self._owner.hop) from failure

    def stop(self, cause: Cause) -> None:
        """End everything under the scope because of `cause`.

        The first cause stands. A scope that is over ignores it. A block that has not begun yet will
        not begin.
        """
        if self.cause is None and not self._over:
            self.cause = cause
            if self._task is not None:
                self._end()

    def set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        """Set a timer of `loop` that stops the scope at its deadline."""
        # An empty context: a copy of the scope's would keep the scope alive until the deadline.
        deadline = self.context.absolute_deadline
        self._timer = loop.call_at(deadline, self.stop, Cause.DEADLINE_SPENT, context=Context())

    def adopt(self, task: asyncio.Task[Any]) -> None:
        """Own `task` too. The task factory calls this for each task started under the scope."""
        if self._over and not self._tasks:
            # Started after the end, by a callback from before the end. It may clean up until the
            # first round of cancellation.
            self._owner._reopened(self)
            self._ending_since, self._overdue = self.context.clock.monotonic(), False
            self._round = self._owner._rounds.next(self._cancel_again)
        if self._tasks:
            self._tasks.add(task)
        else:
            self._tasks = {task}
        task.add_done_callback(self._gone)

    def own(self, close: Callable[[], object]) -> Callable[[], None]:
        """Own something other than a task, such as an open stream.

        `close` is called when the scope ends or is stopped. Returns a function that ends the
        ownership. Call it when the thing has ended by itself.
        """
        if self._closers:
            self._closers.add(close)
        else:
            self._closers = {close}
        return lambda: self._closers.discard(close)

    @property
    def over(self) -> bool:
        """True if the block has been left. A later `own` may never call its `close`."""
        return self._over

    def report(self, what: str, since: float) -> None:
        """Report a thread or process, described by `what`, that should have ended at `since`."""
        self._owner._report(Orphan(self.context, self._owner.hop, what, self.context.clock.monotonic() - since))

    def hold(self) -> bool:
        """Delay cancellations of the running task until `let_go`, for an await that must finish.

        Use it only around awaits that finish when the peer disconnects. Returns False, and delays
        nothing, if the running task does not run the scope's block.
        """
        if self._over or asyncio.current_task(self._owner._loop) is not self._task:
            return False
        (self._outermost or self)._holding = True
        return True

    def let_go(self) -> bool:
        """End `hold`. True if a cancellation was delayed: the task's next await raises it."""
        outermost = self._outermost or self
        outermost._holding = False
        if not outermost._put_off:
            return False
        outermost._put_off = False
        assert self._task is not None
        return asyncio.Task.cancel(self._task)

    def _cancel(self, msg: Any | None = None) -> bool:
        """The replacement for `cancel` of the task that runs the scope.

        The scope sees each cancel here, even if the work swallows the cancellation. A separate task
        for each scope would see it too, but would cost every call two more turns of the loop.
        """
        task = self._task
        assert task is not None
        if not task.done():
            self._cancelled_by(asyncio.current_task(task.get_loop()))  # the loop may run no more
        return self._cut(task, msg)

    def _cut(self, task: asyncio.Task[Any], msg: Any | None = None) -> bool:
        outermost = self._outermost or self
        if outermost._holding:
            outermost._put_off = True
            return True
        return asyncio.Task.cancel(task, msg)

    def _cancelled_by(self, canceller: asyncio.Task[Any] | None) -> None:
        """Handle a cancel by the task `canceller`. If it is outside the scope, the caller has left.

        None means a callback of the event loop. Such cancels come from timeouts and task groups
        inside the work, and these take their cancellation back by themselves.
        """
        if canceller is None or canceller is self._task or canceller in self._tasks:
            return
        self.caller_left = True
        self.stop(self._why_left())
        if self._outer is not None:
            self._outer._cancelled_by(canceller)

    def _why_left(self) -> Cause:
        drift = 0.0 if self.backlog is None else self.backlog.drift(self.context.granted)
        return Cause.DEADLINE_SPENT if self.context.remaining <= _EXPIRES_WITH + drift else Cause.CLIENT_CANCELLED

    async def _end_what_is_left(self) -> None:
        if self._ending_since is None:
            self._end()
        while self._tasks and not self._overdue:
            self._emptied = asyncio.get_running_loop().create_future()
            try:
                await self._emptied
            except asyncio.CancelledError:
                if self.cause is None:
                    self.cause = self._why_left()
        self._close_all()  # closes anything opened while the tasks ended

    def _end(self) -> None:
        self._ending_since = self.context.clock.monotonic()
        self._cancel_all()

    def _cancel_all(self) -> None:
        self._untime()
        if self._task is not None and not self._over:
            self._cut(self._task)
        for task in tuple(self._tasks):
            task.cancel()
        self._close_all()
        self._round = self._owner._rounds.next(self._cancel_again)

    def _close_all(self) -> None:
        while self._closers:
            try:
                self._closers.pop()()
            except Exception as error:
                asyncio.get_running_loop().call_exception_handler(
                    {"message": f"{self!r} could not close what it owns", "exception": error}
                )

    def _cancel_again(self, late: float) -> None:
        assert self._ending_since is not None
        age = self.context.clock.monotonic() - self._ending_since
        if age < REPORT_ORPHAN_AFTER / 2 and late > _BEHIND:
            # The cancelled work has not had its turn yet. A second cancel would only delay others.
            self._round = self._owner._rounds.next(self._cancel_again)
            return
        self._cancel_all()
        # Take the nearest round: a timer slightly too early must not delay this to the next one.
        if age > REPORT_ORPHAN_AFTER - CANCEL_AGAIN_AFTER / 2 and not self._overdue:
            self._overdue = True
            self._owner._became_overdue()
            self._wake_up()
            alive = self._tasks if self._over or self._task is None else {self._task, *self._tasks}
            for task in alive:
                self._owner._report(Orphan(self.context, self._owner.hop, _describe(task), age))
            if not self._over and self.on_overdue is not None:
                self.on_overdue(self)

    def _gone(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not self._tasks and self._over:
            self._untime()
            self._owner._closed(self)
            self._wake_up()

    def _untime(self) -> None:
        if self._round is not None:
            self._round.drop()
            self._round = None
        elif self._timer is None:
            self._owner._timers.forget(self)
        else:
            self._timer.cancel()
            self._timer = None

    def _wake_up(self) -> None:
        if self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    def stopped(self) -> Stopped:
        """The `Stopped` error of the cause."""
        hop, seconds = self._owner.hop, self.context.granted
        if self.cause is Cause.DEADLINE_SPENT:
            return DeadlineSpent(f"the {seconds:.3f} s granted to {hop or 'this work'} are spent", hop=hop)
        if self.cause is Cause.DRAINING:
            return Draining(f"{hop or 'this work'} was stopped by a shutdown", hop=hop)
        return ClientCancelled("the caller cancelled or went away", hop=hop)

    def left(self) -> Stopped:
        """Note that the caller has left, before any cancel, and return the `Stopped` error."""
        self.caller_left = True
        if self.cause is None:
            self.cause = self._why_left()
        return self.stopped()

    def __repr__(self) -> str:
        return f"<Scope {self._owner.hop} run={self.context.run_id} tasks={len(self._tasks)} cause={self.cause}>"


class Scopes:
    """The live scopes of one hop.

        scopes = Scopes("my-service", on_orphan=log_orphan)
        async with scopes.open(context):
            await work()

    They can be counted, stopped and drained. `on_orphan` is called with each orphan.
    """

    def __init__(self, hop: str, on_orphan: Callable[[Orphan], None] = lambda orphan: None) -> None:
        self.hop = hop
        self._on_orphan = on_orphan
        self._live: set[Scope] = set()
        self._emptied: asyncio.Event | None = None
        self._fewer: asyncio.Event | None = None
        """Set when a scope stops being live, or becomes overdue."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._when_idle = Deferred()
        self._timers: CoarseTimers
        self._rounds: CancelRounds

    def open(self, context: DeadlineContext) -> Scope:
        """Make a scope for `context`. It is live from now on, until all its tasks are gone."""
        scope = Scope(context, self)
        self._live.add(scope)
        return scope

    def stop_all(self, cause: Cause) -> None:
        """Stop every live scope."""
        for scope in tuple(self._live):
            scope.stop(cause)

    def context_of(self, task: asyncio.Task[Any]) -> DeadlineContext | None:
        """The context of the call that `task` works for; None if there is none.

        May be called in any thread.
        """
        for scope in tuple(self._live):
            if task is scope._task or task in scope._tasks:
                return scope.context
        return None

    async def emptied(self) -> None:
        """Wait until no scope is live."""
        while self._live:
            self._emptied = self._emptied or asyncio.Event()
            self._emptied.clear()
            await self._emptied.wait()

    async def drained(self) -> None:
        """Wait until no scope is live, except overdue ones. Their orphans are reported already."""
        while any(not scope._overdue for scope in self._live):
            self._fewer = self._fewer or asyncio.Event()
            self._fewer.clear()
            await self._fewer.wait()

    def _live_on(self, loop: asyncio.AbstractEventLoop) -> None:
        own_tasks(loop)
        self._loop, self._timers, self._rounds = loop, coarse_timers_of(loop), CancelRounds(loop)

    def _report(self, orphan: Orphan) -> None:
        self._on_orphan(orphan)

    def _reopened(self, scope: Scope) -> None:
        self._live.add(scope)

    def _closed(self, scope: Scope) -> None:
        self._live.discard(scope)
        if not self._live and self._emptied is not None:
            self._emptied.set()
        if self._fewer is not None:
            self._fewer.set()

    def _became_overdue(self) -> None:
        if self._fewer is not None:
            self._fewer.set()

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Scope]:
        return iter(tuple(self._live))


def current_scope() -> Scope | None:
    """The scope that owns the tasks started by the running task; None outside any scope."""
    return HERE.get()[1]


def outside_any_scope(*, but_threads: bool = False) -> Context:
    """A copy of the current context, for tasks that no scope adopts.

    With `but_threads`, the current scope still owns the threads started there.
    """
    outside = copy_context()
    outside.run(HERE.set, (HERE.get()[0], None))
    if but_threads:
        outside.run(_OWNS_THREADS.set, current_scope())
    return outside


_OWNS_THREADS: ContextVar[Scope | None] = ContextVar("owns threads", default=None)


def owner_of_threads() -> Scope | None:
    """The scope that owns the threads of the running task: the current one.

    Outside any scope, it is the one kept by `outside_any_scope(but_threads=True)`, else None.
    """
    return current_scope() or _OWNS_THREADS.get()


def own_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Install the task factory of `loop` that reports every task to its scope.

    Raises RuntimeError if the loop has another task factory.
    """
    if loop.get_task_factory() is not _adopting_factory:
        if loop.get_task_factory() is not None:
            raise RuntimeError("the event loop has a task factory already: scopes need their own to own every task")
        loop.set_task_factory(_adopting_factory)  # type: ignore[arg-type]  # typeshed asks for a generic protocol


def _adopting_factory(
    loop: asyncio.AbstractEventLoop,
    coroutine: Coroutine[Any, Any, Any],
    *,
    context: Context | None = None,
    **options: Any,
) -> asyncio.Task[Any]:
    if context is None and not options:  # the case of every served call
        task = asyncio.Task(coroutine, loop=loop)
        scope = HERE.get()[1]
    else:
        task = asyncio.Task(coroutine, loop=loop, context=context, **options)
        scope = (HERE.get() if context is None else context.get(HERE, NOWHERE))[1]
    if scope is not None:
        scope.adopt(task)
    return task


def _describe(task: asyncio.Task[Any]) -> str:
    place = ""
    step: Any = task.get_coro()
    while step is not None:  # follow the awaits to the last frame outside asyncio
        frame = getattr(step, "cr_frame", None)
        if frame is not None and not frame.f_globals.get("__name__", "").startswith("asyncio."):
            place = f" at {frame.f_code.co_qualname}:{frame.f_lineno}"
        step = getattr(step, "cr_await", None)
    return f"{task.get_name()}{place}"
