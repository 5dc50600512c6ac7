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
    """From now on, give memory back to the system that the C library has free: a quarter of a second after it was freed, and sooner
    after a call of what this returns.

    By itself the library gives back only the end of its heap, and after a burst of calls, or a single large message, there is
    always a block that is still used behind what they have left free. Does nothing where the library is not glibc 2.33 or later.
    """
    freed = threading.Event()
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim") and hasattr(library, "mallinfo2"):
        library.mallinfo2.restype = _Mallinfo2
        threading.Thread(target=_return_memory, args=(library, freed), name="return memory", daemon=True).start()
    return freed.set


LOOK_AT_MEMORY_EVERY_S = 0.25
RETURN_MEMORY_EVERY_S = 0.02
"""However often it is asked for. It takes about 1 ms, in which nothing can be allocated."""

WORTH_RETURNING = 2 * 1024 * 1024
"""Bytes by which free memory has changed since some was last given back. Glibc counts as free what it has given back, too."""


class _Mallinfo2(ctypes.Structure):
    """From glibc's malloc.h. `fordblks` are the bytes that are free."""

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
