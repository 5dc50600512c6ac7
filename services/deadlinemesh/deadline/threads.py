"""The event loop's threads, for `asyncio.to_thread`, `run_in_executor` and what looks up names.

A thread cannot be stopped. What can be done is done here: one whose call has ended is an orphan, reported with its tenant like any
other; it takes nobody's place any more; and it does not keep the process from ending, as those of the standard library do. What may
block for long belongs into a process, which can be killed.
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
"""Seconds for which a thread waits for work before it ends."""

P = ParamSpec("P")
T = TypeVar("T")


class Threads(ThreadPoolExecutor):
    """At most `most` threads whose calls are wanted; any number of orphans besides. Submit from the event loop's thread.

    It is a ThreadPoolExecutor by name only, as asyncio takes no other for its default.
    """

    def __init__(self, most: float = min(32, (os.cpu_count() or 1) + 4)) -> None:
        super().__init__(1)
        self._most = most
        self._changed = threading.Condition()
        self._line: deque[_Work] = deque()
        self._wanted = 0
        """Threads without those that are orphans."""
        self._idle = 0
        self._closed = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call `fn` in a thread. It is owned by the scope of whoever submits it. Raises RuntimeError where there is no thread."""
        work = _Work(partial(fn, *args, **kwargs), _named(fn, args))
        with self._changed:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._line.append(work)
            if self._idle >= len(self._line):
                self._changed.notify()
            else:
                try:
                    self._add_thread()
                except RuntimeError:
                    self._line.remove(work)
                    raise
        scope = owner_of_threads()
        if scope is not None:
            loop = asyncio.get_running_loop()
            disown = scope.own(partial(self._unwanted, work, scope, loop))
            work.future.add_done_callback(partial(_soon, loop, disown))
        return work.future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Begin nothing more. Nobody is waited for: a thread may be in a call for ever."""
        with self._changed:
            self._closed = True
            while self._line:
                self._line.popleft().future.cancel()
            self._changed.notify_all()

    def _add_thread(self) -> None:
        if self._wanted < self._most:
            try:
                threading.Thread(target=self._serve, name="blocking", daemon=True).start()
            except RuntimeError:  # the system gives no more of them
                if not self._wanted:
                    raise
            else:
                self._wanted += 1

    def _serve(self) -> None:
        while True:
            with self._changed:
                needed = True
                while not self._line:
                    if self._closed or not needed:
                        self._wanted -= 1
                        return
                    self._idle += 1
                    needed = self._changed.wait(IDLE_FOR)
                    self._idle -= 1
                work = self._line.popleft()
            work.run()
            with self._changed:
                if work.orphan:  # another thread has its place
                    return
                work.over = True
            del work

    def _unwanted(self, work: _Work, scope: Scope, loop: asyncio.AbstractEventLoop) -> None:
        """The scope has ended. What has not begun never will; what has is looked at again."""
        if not work.future.cancel() and not work.future.done():
            loop.call_later(REPORT_ORPHAN_AFTER, self._report, work, scope, scope.context.clock.monotonic())

    def _report(self, work: _Work, scope: Scope, since: float) -> None:
        with self._changed:
            if work.over:
                return
            work.orphan = True
            self._wanted -= 1
            if self._line:
                with suppress(RuntimeError):
                    self._add_thread()
        scope.report(f"a thread in {work.name}", since)


class _Work:
    """One call."""

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
    """Have scopes own what `loop` does in threads."""
    loop.set_default_executor(Threads())


def _soon(loop: asyncio.AbstractEventLoop, callback: Callable[[], None], _: object) -> None:
    with suppress(RuntimeError):  # the loop is closed, and the scope has ended with it
        loop.call_soon_threadsafe(callback, context=Context())


def _named(function: Callable[..., Any], arguments: tuple[Any, ...]) -> str:
    """What is called: `asyncio.to_thread` hides it behind a context's `run`."""
    if isinstance(function, partial):
        return _named(function.func, function.args)
    if getattr(function, "__name__", "") == "run" and isinstance(getattr(function, "__self__", None), Context):
        return _named(arguments[0], ()) if arguments else "run"
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return ".".join(filter(None, (getattr(function, "__module__", None), name)))
