"""Runs a module in a process that ends with its starter.

Usage: `python -m deadlinemesh.local.tied MODULE ARGUMENTS`.

The starter holds the other end of this process's standard input and never writes to it. However the
starter ends, even by SIGKILL, the kernel closes that end. At the end of file this process exits. It
does so at once: without a starter, a drain has no purpose. PR_SET_PDEATHSIG would need no thread,
but it exists only on Linux, and it acts when the starting *thread* ends.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading
from contextlib import suppress

ORPHANED = 70
"""Exit code after the end of the starter."""


def end_with_starter() -> None:
    """Start a thread that ends this process when its standard input is closed."""
    # The module gets its own empty input, so that only the thread below reads from the starter.
    lifeline = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)

    def wait() -> None:
        with suppress(OSError):
            while os.read(lifeline, 1):
                pass
        os._exit(ORPHANED)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()


if __name__ == "__main__":
    end_with_starter()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
