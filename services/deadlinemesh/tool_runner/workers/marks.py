"""Marks that find a process and all its descendants, wherever they hide.

A process that a marked process starts has the same mark. The mark is a resource limit without
effect: the microseconds that a process may compute under real-time scheduling (RLIMIT_RTTIME). It
is inherited, also into new sessions and programs. It can only be lowered. Any process may read it
of any other, even of one that hides its memory and environment. Linux only; elsewhere there are no
marks.
"""

from __future__ import annotations

import os
import resource
import secrets
import signal
import sys
from collections.abc import Iterable, Iterator, Set
from contextlib import suppress
from pathlib import Path

__all__ = ["kill_marked", "mark_process", "new_mark", "own_mark", "reap"]

_RLIMIT_RTTIME = 15
_MOST = 1 << 62
_LEAST = 1 << 32
"""Microseconds. A limit below it was set on purpose and is kept."""

_own = 0


def new_mark() -> int:
    """A mark for a process that this one starts; 0 if marks are not possible."""
    if sys.platform != "linux":
        return 0
    _, hard = resource.getrlimit(_RLIMIT_RTTIME)
    most = _MOST if hard == resource.RLIM_INFINITY else hard
    return most // 2 + secrets.randbelow(most // 2) if most > _LEAST else 0


def mark_process(mark: int) -> None:
    """Mark this process, and every process that it starts from now on. A mark of 0 does nothing."""
    global _own
    if mark:
        resource.setrlimit(_RLIMIT_RTTIME, (mark, mark))
        _own = mark


def own_mark() -> int:
    """The mark of this process; 0 if it has none."""
    return _own


def kill_marked(mark: int, spared: Set[int] = frozenset()) -> Set[int]:
    """Kill every process that has `mark`, except `spared`. Returns the killed process ids."""
    killed = set(spared)
    while mark and (marked := set(_marked(mark)) - killed):  # until no new one appears
        for pid in marked:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        killed |= marked
    return killed - spared


def reap(pids: Iterable[int]) -> None:
    """Wait for killed processes that have become children of this one. Blocks."""
    for pid in pids:
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)


def _marked(mark: int) -> Iterator[int]:
    wanted = str(mark).encode()
    for limits in Path("/proc").glob("[0-9]*/limits"):
        with suppress(OSError):  # it has ended
            for line in limits.read_bytes().splitlines():
                if line.startswith(b"Max realtime timeout") and line.split()[-2] == wanted:
                    yield int(limits.parent.name)
