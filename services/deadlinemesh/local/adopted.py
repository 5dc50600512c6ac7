"""Processes left by a dead service, such as a keeper that a tool has stopped, and tools' processes.

The supervisor is their subreaper: when a process below it loses its parent, the kernel makes it a
child of the supervisor. So no process outlives the mesh. Linux only; elsewhere none is adopted.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Set
from contextlib import suppress

__all__ = ["END_BY_THEMSELVES_S", "adopt", "end_adopted"]

END_BY_THEMSELVES_S = 1.0
"""Seconds that left processes get to end by themselves, as a keeper ends its workers. Then they are
killed."""

GIVEN_UP_AFTER_S = 5.0
"""Seconds until processes that do not die are given up, such as one in a hung system call."""

LOOK_EVERY_S = 0.02
"""Seconds between two looks at the children."""

_PR_SET_CHILD_SUBREAPER = 36


def adopt() -> None:
    """Make this process the new parent of all its descendants that lose theirs."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


async def end_adopted(own: Callable[[], Set[int] | None]) -> int:
    """Wait until this process has only the children that `own` returns, and kill the others.

    Returns the number of killed processes. `own` returns None while its children are not known.
    """
    began_at = time.monotonic()
    killed: set[int] = set()
    while True:
        known = own()
        left = set() if known is None else _children() - known
        if known is not None and not left:
            break
        for pid in left:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)  # noqa: ASYNC222  # it does not wait
        waited = time.monotonic() - began_at
        if waited >= GIVEN_UP_AFTER_S:
            break
        if waited >= END_BY_THEMSELVES_S:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            killed |= left
        await asyncio.sleep(LOOK_EVERY_S)
    return len(killed)


def _children() -> set[int]:
    """The ids of this process's children, zombies included."""
    own, found = os.getpid(), set[int]()
    with suppress(OSError):
        for name in os.listdir("/proc"):
            if name.isdigit():
                with suppress(OSError, ValueError, IndexError), open(f"/proc/{name}/stat", "rb") as file:
                    # The process's name is in parentheses and may have any text. State and parent
                    # follow.
                    if int(file.read().rpartition(b") ")[2].split()[1]) == own:
                        found.add(int(name))
    return found
