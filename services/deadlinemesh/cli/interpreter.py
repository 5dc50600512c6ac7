"""How the interpreter of a process that holds deadlines is set up, so that it does not hold them up itself."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
import time
from collections.abc import Callable

__all__ = ["keep_memory_together", "quiet_the_core", "return_memory", "spare_the_event_loop"]


def quiet_the_core() -> None:
    """Have gRPC's core log nothing, unless GRPC_VERBOSITY says so: it writes a line for each call of a stranger that it refuses.
    Before the first channel or server.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def keep_memory_together() -> None:
    """Have the C library serve all threads from one arena, where it knows arenas, and give large blocks back to the system as they
    are freed. Before any other thread runs.

    gRPC's threads take memory that the event loop's gives back. In arenas of their own that leaves holes that are never filled. And
    once it has freed a message of megabytes, the library would keep all that are freed later.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, 256 * 1024)


_M_ARENA_MAX, _M_MMAP_THRESHOLD = -8, -3
"""From glibc's malloc.h."""


def return_memory() -> Callable[[], None]:
    """From now on, give what the C library has free back to the system whenever memory has fallen by a third since its peak, and
    soon after a call of what this returns.

    By itself the library gives back only the end of its heap, and after a burst of calls there is always a block that is still used
    behind what they have left free. It takes 2 ms after 400 calls of 1 MB. Does nothing where the system cannot be asked.
    """
    freed = threading.Event()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None and os.path.exists(_STATM):
        threading.Thread(target=_return_memory, args=(trim, freed), name="return memory", daemon=True).start()
    return freed.set


LOOK_AT_MEMORY_EVERY_S = 2.0
RETURN_MEMORY_EVERY_S = 0.02
"""However often it is asked for."""

FALLEN_TO = 2 / 3
"""The part of its peak to which memory has fallen when what is free is given back."""

_STATM = "/proc/self/statm"


def _return_memory(trim: Callable[[int], int], freed: threading.Event) -> None:
    peak = 0
    while True:
        told = freed.wait(LOOK_AT_MEMORY_EVERY_S)
        freed.clear()
        with open(_STATM) as statm:
            resident = int(statm.read().split()[1])
        peak = max(peak, resident)
        if told or resident < FALLEN_TO * peak:
            trim(0)
            peak = 0
            time.sleep(RETURN_MEMORY_EVERY_S)


def spare_the_event_loop() -> None:
    """Keep what runs beside the event loop from holding up deadlines."""
    _spare_the_collector()
    # A thread that exports spans would keep the interpreter for 5 ms at a time while the loop waits for its turn.
    sys.setswitchinterval(0.0005)


def _spare_the_collector() -> None:
    """Let the cycle collector look at young objects only, and less often: what is loaded by now stays for good.

    By default a burst of ends sets off full collections, which walk every module and hold all tenants up for tens of
    milliseconds at the very moment when their time is up.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 10, 50)
