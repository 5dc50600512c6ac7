"""Set-up of the interpreter, so that it does not delay the deadlines of its process."""

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
    """Make gRPC's core log nothing, unless GRPC_VERBOSITY is set.

    Else it writes a line for each call of a stranger that it refuses. Call this before the first
    channel or server is made.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def keep_memory_together() -> None:
    """Make glibc use one arena for all threads, and return large blocks to the system when freed.

    Call this before any other thread runs. Does nothing with another C library. gRPC's threads
    allocate memory that the event loop's thread frees. With one arena for each thread, this leaves
    holes that are never filled. Without the fixed limit for large blocks, glibc would keep all
    large messages that are freed after the first one of megabytes.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, 256 * 1024)


_M_ARENA_MAX, _M_MMAP_THRESHOLD = -8, -3
"""Parameters of `mallopt`, from glibc's malloc.h."""


def return_memory() -> Callable[[], None]:
    """Start to return glibc's free memory to the system, a quarter of a second after it was freed.

    Returns a function. Call it to return free memory sooner. Does nothing without glibc 2.33 or
    later.

    By itself, glibc returns only the end of its heap. After a burst of calls, or a single large
    message, there is always a used block behind the free ones.
    """
    freed = threading.Event()
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim") and hasattr(library, "mallinfo2"):
        library.mallinfo2.restype = _Mallinfo2
        threading.Thread(target=_return_memory, args=(library, freed), name="return memory", daemon=True).start()
    return freed.set


LOOK_AT_MEMORY_EVERY_S = 0.25
"""Seconds between two looks at the free memory."""
RETURN_MEMORY_EVERY_S = 0.02
"""Minimum seconds between two returns of memory. One takes about 1 ms and blocks allocations."""

WORTH_RETURNING = 2 * 1024 * 1024
"""Bytes. Free memory is returned if its size has changed by more than this since the last return.
The change counts, because glibc also counts returned memory as free."""


class _Mallinfo2(ctypes.Structure):
    """The struct mallinfo2 of glibc's malloc.h. `fordblks` is the number of free bytes."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def _return_memory(library: ctypes.CDLL, freed: threading.Event) -> None:
    returned = 0
    while True:
        told = freed.wait(LOOK_AT_MEMORY_EVERY_S)
        freed.clear()
        if told or abs(library.mallinfo2().fordblks - returned) > WORTH_RETURNING:
            library.malloc_trim(0)
            returned = library.mallinfo2().fordblks
            time.sleep(RETURN_MEMORY_EVERY_S)


def spare_the_event_loop() -> None:
    """Prevent garbage collections and other threads from delaying deadlines."""
    _spare_the_collector()
    # By default, a thread that exports spans would hold the GIL for 5 ms while the loop waits for
    # it.
    sys.setswitchinterval(0.0005)


def _spare_the_collector() -> None:
    """Exclude all present objects from the cycle collector, and make it run less often.

    By default, a burst of ending runs causes full collections. These visit every module and delay
    all tenants for tens of milliseconds, just when their time is up.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 10, 50)
