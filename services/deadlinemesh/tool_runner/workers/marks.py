"""Marks by which processes are found wherever they hide: whatever a marked process starts is marked too.

The mark is a limit that limits nothing: of the microseconds that a process may compute under real-time scheduling. It is inherited,
into new sessions and programs too, can only be lowered, and any process may read it of any other, also of one that hides its memory
and environment. Linux only; elsewhere nothing is marked.
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
"""Microseconds. Below it are limits that somebody has set on purpose."""

_own = 0


def new_mark() -> int:
    """A mark for a process that this one starts; 0 where there are none."""
    if sys.platform != "linux":
        return 0
    _, hard = resource.getrlimit(_RLIMIT_RTTIME)
    most = _MOST if hard == resource.RLIM_INFINITY else hard
    return most // 2 + secrets.randbelow(most // 2) if most > _LEAST else 0


def mark_process(mark: int) -> None:
    """Mark this process, and whatever it starts from now on. A mark of 0 is none."""
    global _own
    if mark:
        resource.setrlimit(_RLIMIT_RTTIME, (mark, mark))
        _own = mark


def own_mark() -> int:
    """What this process was marked with; 0 if it was not."""
    return _own


def kill_marked(mark: int, spared: Set[int] = frozenset()) -> Set[int]:
    """Kill every process that has `mark`, except `spared`. Returns their process ids."""
    killed = set(spared)
    while mark and (marked := set(_marked(mark)) - killed):  # until none is found that was born meanwhile
        for pid in marked:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        killed |= marked
    return killed - spared


def reap(pids: Iterable[int]) -> None:
    """Wait for processes that were killed, as far as they have become this one's children. It blocks."""
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
