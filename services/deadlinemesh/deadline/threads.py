"""The event loop's threads, for `asyncio.to_thread`, `run_in_executor` and name lookups.

A thread cannot be stopped, so its harm is limited. If it runs on after its call has ended, it is an
orphan and is reported with its tenant. It no longer counts against the number of threads. It does
not keep the process from ending, as the threads of the standard library do. Code that may block for
long belongs into a process, because a process can be killed.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import Any, ParamSpec, TypeVar

from deadlinemesh.deadline.scope import REPORT_ORPHAN_AFTER, Scope, owner_of_threads

__all__ = ["Threads", "own_threads"]

IDLE_FOR = 10.0
"""Seconds that an idle thread waits for work before it ends."""

P = ParamSpec("P")
T = TypeVar("T")


class Threads(ThreadPoolExecutor):
    """A pool of at most `most` threads. Orphans do not count.

    Submit from the event loop's thread. It inherits from ThreadPoolExecutor only because asyncio
    accepts no other default executor.
    """

    def __init__(self, most: float = min(32, (os.cpu_count() or 1) + 4)) -> None:
        super().__init__(1)
        self._most = most
        self._changed = threading.Condition()
        self._queue: deque[_Work] = deque()
        self._wanted = 0
        """The number of threads, without orphans."""
        self._idle = 0
        self._closed = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call `fn` in a thread. The caller's scope owns the call.

        Raises RuntimeError after `shutdown`, or if the system gives no thread at all.
        """
        work = _Work(partial(fn, *args, **kwargs), _named(fn, args))
        with self._changed:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._queue.append(work)
            if self._idle >= len(self._queue):
                self._changed.notify()
            else:
                try:
                    self._add_thread()
                except RuntimeError:
                    self._queue.remove(work)
                    raise
        scope = owner_of_threads()
        if scope is not None:
            loop = asyncio.get_running_loop()
            disown = scope.own(partial(self._unwanted, work, scope, loop))
            work.future.add_done_callback(partial(_soon, loop, disown))
        return work.future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Begin no more calls. This does not wait: a call may last for ever."""
        with self._changed:
            self._closed = True
            while self._queue:
                self._queue.popleft().future.cancel()
            self._changed.notify_all()

    def _add_thread(self) -> None:
        if self._wanted < self._most:
            try:
                threading.Thread(target=self._serve, name="blocking", daemon=True).start()
            except RuntimeError:  # the system gives no more threads
                if not self._wanted:
                    raise
            else:
                self._wanted += 1

    def _serve(self) -> None:
        while True:
            with self._changed:
                needed = True
                while not self._queue:
                    if self._closed or not needed:
                        self._wanted -= 1
                        return
                    self._idle += 1
                    needed = self._changed.wait(IDLE_FOR)
                    self._idle -= 1
                work = self._queue.popleft()
            work.run()
            with self._changed:
                if work.orphan:  # another thread has its place
                    return
                work.over = True
            del work

    def _unwanted(self, work: _Work, scope: Scope, loop: asyncio.AbstractEventLoop) -> None:
        """Handle the end of the scope: cancel a call not begun yet, look again at a running one."""
        if not work.future.cancel() and not work.future.done():
            loop.call_later(REPORT_ORPHAN_AFTER, self._report, work, scope, scope.context.clock.monotonic())

    def _report(self, work: _Work, scope: Scope, since: float) -> None:
        with self._changed:
            if work.over:
                return
            work.orphan = True
            self._wanted -= 1
            if self._queue:
                with suppress(RuntimeError):
                    self._add_thread()
        scope.report(f"a thread in {work.name}", since)


class _Work:
    """One submitted call."""

    def __init__(self, call: Callable[[], Any], name: str) -> None:
        self.future: Future[Any] = Future()
        self.name = name
        self.over = False
        self.orphan = False
        self._call = call

    def run(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self._call()
        except BaseException as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


def own_threads(loop: asyncio.AbstractEventLoop) -> None:
    """Make scopes own the calls that `loop` makes in threads."""
    loop.set_default_executor(Threads())


def _soon(loop: asyncio.AbstractEventLoop, callback: Callable[[], None], _: object) -> None:
    with suppress(RuntimeError):  # the loop is closed, and the scope has ended with it
        loop.call_soon_threadsafe(callback, context=Context())


def _named(function: Callable[..., Any], arguments: tuple[Any, ...]) -> str:
    """The name of the called function. `asyncio.to_thread` hides it behind a context's `run`."""
    if isinstance(function, partial):
        return _named(function.func, function.args)
    if getattr(function, "__name__", "") == "run" and isinstance(getattr(function, "__self__", None), Context):
        return _named(arguments[0], ()) if arguments else "run"
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return ".".join(filter(None, (getattr(function, "__module__", None), name)))
