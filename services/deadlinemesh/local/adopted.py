"""Processes that a dead service has left, such as a keeper that a tool has stopped, and what tools had started.

The supervisor is their subreaper: the kernel gives it whatever loses its parent below it, so that nothing of the mesh outlives
the mesh. Linux only; elsewhere there is nothing to adopt.
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
"""Seconds in which what was left may end by itself, as a keeper does that ends its workers, before it is killed."""

GIVEN_UP_AFTER_S = 5.0
"""Seconds after which what does not die, as one in a system call that hangs, is left to the system."""

LOOK_EVERY_S = 0.02

_PR_SET_CHILD_SUBREAPER = 36


def adopt() -> None:
    """Have every process below this one that loses its parent become a child of this one."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


async def end_adopted(own: Callable[[], Set[int] | None]) -> int:
    """Return when this process has no children but those that `own` names; kill the others. Returns how many it killed.

    `own` is None while that cannot be said.
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
    """The ids of this process's children, dead ones that nobody has waited for included."""
    own, found = os.getpid(), set[int]()
    with suppress(OSError):
        for name in os.listdir("/proc"):
            if name.isdigit():
                with suppress(OSError, ValueError, IndexError), open(f"/proc/{name}/stat", "rb") as file:
                    # A process's name is in parentheses and may hold anything. State and parent follow.
                    if int(file.read().rpartition(b") ")[2].split()[1]) == own:
                        found.add(int(name))
    return found
