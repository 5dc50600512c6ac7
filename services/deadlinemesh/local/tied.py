"""`python -m deadlinemesh.local.tied MODULE ARGUMENTS`: runs a module in a process that ends with whoever started it.

The starter holds the other end of this process's standard input and never writes to it. However the starter goes, even
by SIGKILL, the kernel closes that end, and the end of file is the sign to go. Linux's PR_SET_PDEATHSIG would do it
without a thread, but only there, and it fires when the starting *thread* ends. There is nobody left to drain for: it
ends at once.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading
from contextlib import suppress

ORPHANED = 70
"""Exit code of a process whose starter is gone."""


def end_with_starter() -> None:
    """From now on, end this process when its standard input is closed."""
    # The module that is run gets an empty input of its own: two readers would take turns at the sign.
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
