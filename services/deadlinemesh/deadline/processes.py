"""Ownership of processes: what a call starts on the event loop, or in its threads, ends with it as its tasks do.

Python raises an audit event before it starts a process, in the context of whoever does. So the next new child of that thread is of
that context's scope. Its descendants are found below it. What it leaves when it dies falls to this process, if that has
called `inherit_processes`, and belongs to the same scope.

REPORT_ORPHAN_AFTER after the end of its scope, a process that lives on is an orphan: reported, and killed with its descendants.
Linux only; elsewhere nothing is owned.
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
"""Processes of one scope that are reported. All are killed."""

_STARTS = frozenset({"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system"})
"""Python's audit events of a process that is about to be started."""

_PR_SET_CHILD_SUBREAPER = 36

_owner: _Processes | None = None
"""Of the event loop that runs in this process now."""

_hooked = False


def inherit_processes() -> None:
    """Have this process inherit what its descendants leave when they die, instead of the machine's first process."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def own_processes() -> None:
    """Have scopes own the processes that are started under them, on the running loop or in its threads."""
    global _owner, _hooked
    loop = asyncio.get_running_loop()
    if (_owner is not None and _owner.loop is loop) or not hasattr(os, "pidfd_open"):
        return
    _owner = _Processes(loop)
    if not _hooked:
        _hooked = True
        sys.addaudithook(_audit)


def end_processes() -> None:
    """Report and kill at once what scopes still own: this process is about to end."""
    if _owner is not None:
        _owner.end_all()


def _audit(event: str, _: tuple[Any, ...]) -> None:
    if event in _STARTS and _owner is not None:
        _owner.starting()


class _Owned:
    """What one scope has started."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.alive: dict[int, int] = {}
        """Process ids, each with a file descriptor of the process."""
        self.dead: set[int] = set()
        """Children that have died. The call itself may still want their exit codes."""
        self.inherited: set[int] = set()
        """Those whom nobody but this process can wait for."""
        self.reported: set[int] = set()
        self.since = 0.0
        """The instant at which the scope ended, or was stopped."""
        self.over = False
        """Whether what is found from now on is killed at once."""


class _Processes:
    """The processes of the scopes of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._thread = threading.get_native_id()
        self._lock = threading.Lock()
        self._seen = {thread: set(_children(os.getpid(), thread)) for thread in (os.getpid(), self._thread)}
        """By thread, its children when they were last looked at."""
        self._starting: dict[int, Scope | None] = {}
        """By thread, whose process it was about to start; None for the mesh's own."""
        self._owned: dict[Scope, _Owned] = {}

    def starting(self) -> None:
        """Note that the running thread is about to start a process, for the scope of its context."""
        thread, scope = threading.get_native_id(), owner_of_threads()
        self._settle(thread)  # what has been started before is nothing of it
        with self._lock:
            self._starting[thread] = scope
        self._on_loop(self._started, thread, scope)

    def end_all(self) -> None:
        """Report and kill now all that scopes own."""
        for owned in list(self._owned.values()):
            self._end(owned)

    def _started(self, thread: int, scope: Scope | None) -> None:
        if scope is not None:
            self._of(scope)
        if thread == self._thread:  # another may not have come to it yet
            self._settle(thread)

    def _settle(self, thread: int) -> None:
        """Give the new children of `thread` to the scope for which it was starting one."""
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
        except OSError:  # it has ended, and has been waited for
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
        for thread in tuple(self._starting):  # what is new among the children for another reason than this death
            self._settle(thread)
        with self._lock:
            left = self._new_children(os.getpid())  # the first thread inherits
        for one in left:
            self._own(one, self._by_session(one) or owned.scope, inherited=True)

    def _by_session(self, pid: int) -> Scope | None:
        """The scope that the leader of the process's session or group belongs to."""
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
            _wait_for(owned.dead.pop())  # the call is over: nobody else will
        if owned.alive:
            self._end(owned)  # it may hang in a system call, or have forked on
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
    """What a living process runs; empty where it is dead. Its arguments may hold secrets."""
    with suppress(OSError):
        name, _, rest = Path(f"/proc/{pid}/stat").read_text(errors="replace").partition(" (")[2].rpartition(") ")
        if rest[0] not in "ZX":
            return name
    return ""
