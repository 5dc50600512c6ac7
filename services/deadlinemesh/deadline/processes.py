"""Ownership of processes: a process that a call starts ends with the call, as its tasks do.

This covers processes started on the event loop or in its threads. Python raises an audit event just
before it starts a process, in the caller's context. So the next new child of that thread belongs to
the scope of that context. Its descendants are found below it. When it dies, this process inherits
its children, if `inherit_processes` was called, and they belong to the same scope.

A process still alive REPORT_ORPHAN_AFTER its scope's end is an orphan. It is reported, and killed
with its descendants. Linux only; elsewhere no process is owned.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import Context
from functools import partial
from pathlib import Path
from typing import Any

from deadlinemesh.deadline.scope import REPORT_ORPHAN_AFTER, Scope, owner_of_threads

__all__ = ["end_processes", "inherit_processes", "own_processes"]

MOST_REPORTED = 20
"""Processes of one scope that are reported at most. All are killed."""

_STARTS = frozenset({"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system"})
"""Python's audit events that precede the start of a process."""

_PR_SET_CHILD_SUBREAPER = 36

_owner: _Processes | None = None
"""The processes of the event loop that now runs in this process."""

_hooked = False


def inherit_processes() -> None:
    """Make this process inherit its descendants' orphaned children, in place of process 1."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def own_processes() -> None:
    """Make scopes own the processes started under them, on the running loop or in its threads."""
    global _owner, _hooked
    loop = asyncio.get_running_loop()
    if (_owner is not None and _owner.loop is loop) or not hasattr(os, "pidfd_open"):
        return
    _owner = _Processes(loop)
    if not _hooked:
        _hooked = True
        sys.addaudithook(_audit)


def end_processes() -> None:
    """Report and kill at once all processes that scopes own: this process is about to end."""
    if _owner is not None:
        _owner.end_all()


def _audit(event: str, _: tuple[Any, ...]) -> None:
    if event in _STARTS and _owner is not None:
        _owner.starting()


class _Owned:
    """The processes that one scope has started."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.alive: dict[int, int] = {}
        """Ids of living processes, each with its pidfd."""
        self.dead: set[int] = set()
        """Ids of dead children. The call itself may still want their exit codes."""
        self.inherited: set[int] = set()
        """Ids of inherited processes. Only this process can wait for them."""
        self.reported: set[int] = set()
        self.since = 0.0
        """The instant of the scope's end or stop."""
        self.over = False
        """True if processes found from now on are killed at once."""


class _Processes:
    """The processes of the scopes of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._thread = threading.get_native_id()
        self._lock = threading.Lock()
        self._seen = {thread: set(_children(os.getpid(), thread)) for thread in (os.getpid(), self._thread)}
        """The children of each thread at the last look."""
        self._starting: dict[int, Scope | None] = {}
        """Threads about to start a process, each with its scope; None if no scope is current."""
        self._owned: dict[Scope, _Owned] = {}

    def starting(self) -> None:
        """Note that the running thread is about to start a process for its current scope."""
        thread, scope = threading.get_native_id(), owner_of_threads()
        self._settle(thread)  # earlier children do not belong to this scope
        with self._lock:
            self._starting[thread] = scope
        self._on_loop(self._started, thread, scope)

    def end_all(self) -> None:
        """Report and kill now all processes that scopes own."""
        for owned in list(self._owned.values()):
            self._end(owned)

    def _started(self, thread: int, scope: Scope | None) -> None:
        if scope is not None:
            self._of(scope)
        if thread == self._thread:  # another thread may not have started it yet
            self._settle(thread)

    def _settle(self, thread: int) -> None:
        """Assign the new children of `thread` to the scope noted for it."""
        with self._lock:
            scope = self._starting.get(thread)
            new = self._new_children(thread)
            if new or thread == self._thread:
                self._starting.pop(thread, None)
        if scope is not None:
            for pid in new:
                self._on_loop(self._own, pid, scope)

    def _new_children(self, thread: int) -> set[int]:
        before, now = self._seen.pop(thread, set()), set(_children(os.getpid(), thread))
        if now:
            self._seen[thread] = now
        return now - before

    def _of(self, scope: Scope) -> _Owned:
        owned = self._owned.get(scope)
        if owned is None:
            owned = self._owned[scope] = _Owned(scope)
            if scope.over:
                self._ended(owned)
            else:
                scope.own(partial(self._ended, owned))
        return owned

    def _own(self, pid: int, scope: Scope, *, inherited: bool = False) -> None:
        owned = self._of(scope)
        try:
            process = os.pidfd_open(pid)
        except OSError:  # it has ended and was waited for
            return
        owned.alive[pid] = process
        if inherited:
            owned.inherited.add(pid)
        self.loop.add_reader(process, self._died, owned, pid)
        if owned.over:
            self._kill(owned, pid)

    def _died(self, owned: _Owned, pid: int) -> None:
        process = owned.alive.pop(pid)
        self.loop.remove_reader(process)
        os.close(process)
        if pid in owned.inherited:
            _wait_for(pid)
        else:
            owned.dead.add(pid)
        for thread in tuple(self._starting):  # started children must not pass for inherited ones
            self._settle(thread)
        with self._lock:
            left = self._new_children(os.getpid())  # the main thread inherits
        for one in left:
            self._own(one, self._by_session(one) or owned.scope, inherited=True)

    def _by_session(self, pid: int) -> Scope | None:
        """The scope that owns the leader of the process's session or group."""
        with suppress(ProcessLookupError):
            leaders = {os.getsid(pid), os.getpgid(pid)}
            for scope, owned in self._owned.items():
                if not leaders.isdisjoint(owned.alive) or not leaders.isdisjoint(owned.dead):
                    return scope
        return None

    def _ended(self, owned: _Owned) -> None:
        owned.since = owned.scope.context.clock.monotonic()
        self.loop.call_later(REPORT_ORPHAN_AFTER, self._end, owned, context=Context())

    def _end(self, owned: _Owned) -> None:
        for thread in tuple(self._starting):
            self._settle(thread)
        owned.over = True
        for pid in tuple(owned.alive):
            self._kill(owned, pid)
        if not self.loop.is_closed():
            self.loop.call_later(REPORT_ORPHAN_AFTER, self._forget, owned, context=Context())

    def _kill(self, owned: _Owned, pid: int) -> None:
        for one in (pid, *_descendants(pid)):
            name = _name(one)
            with suppress(OSError):
                os.kill(one, signal.SIGKILL)
            if name and one not in owned.reported:
                owned.reported.add(one)
                if len(owned.reported) <= MOST_REPORTED:
                    owned.scope.report(f"process {one} ({name})", owned.since)

    def _forget(self, owned: _Owned) -> None:
        while owned.dead:
            _wait_for(owned.dead.pop())  # the call is over: no other code will do it
        if owned.alive:
            self._end(owned)  # it may hang in a system call, or may have forked
        else:
            self._owned.pop(owned.scope, None)

    def _on_loop(self, callback: Callable[..., object], *arguments: Any) -> None:
        if threading.get_native_id() == self._thread and callback != self._started:
            callback(*arguments)
            return
        with suppress(RuntimeError):  # the loop is closed, and its scopes have ended with it
            self.loop.call_soon_threadsafe(callback, *arguments, context=Context())


def _wait_for(pid: int) -> None:
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _children(pid: int, thread: int) -> Iterator[int]:
    with suppress(OSError):
        yield from map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())


def _descendants(pid: int) -> Iterator[int]:
    threads: list[str] = []
    with suppress(OSError):
        threads = os.listdir(f"/proc/{pid}/task")
    for thread in threads:
        for child in _children(pid, int(thread)):
            yield child
            yield from _descendants(child)


def _name(pid: int) -> str:
    """The program name of a living process; empty if it is dead.

    Not its arguments: they may hold secrets.
    """
    with suppress(OSError):
        name, _, rest = Path(f"/proc/{pid}/stat").read_text(errors="replace").partition(" (")[2].rpartition(") ")
        if rest[0] not in "ZX":
            return name
    return ""
