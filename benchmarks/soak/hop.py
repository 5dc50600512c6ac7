"""A service as `dmesh serve NAME` runs it, that tells on SIGUSR1 what it holds: its tasks, scopes, slots, and waits for slots.

Nothing of a service is reachable from outside but its RPCs, so this process notes each bulkhead and each set of scopes as it is
made. What it tells goes to a file in the folder that SOAK_PROBE_FOLDER names, in one piece.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import weakref
from pathlib import Path
from typing import Any

from deadlinemesh.admission import Bulkhead
from deadlinemesh.deadline.scope import Scopes
from deadlinemesh.hosting.serve import serve
from deadlinemesh.hosting.settings import HopSettings

__all__ = ["PROBE_FOLDER"]

PROBE_FOLDER = "SOAK_PROBE_FOLDER"


def _noted(kind: type[Any]) -> weakref.WeakSet[Any]:
    """Every instance of `kind` that is made from now on."""
    made: weakref.WeakSet[Any] = weakref.WeakSet()
    begin = kind.__init__

    def noting(self: Any, *arguments: Any, **named: Any) -> None:
        begin(self, *arguments, **named)
        made.add(self)

    kind.__init__ = noting
    return made


def main(name: str) -> None:
    """Serve until told to stop."""
    bulkheads, scopes = _noted(Bulkhead), _noted(Scopes)
    path = Path(os.environ[PROBE_FOLDER]) / f"{name}.probe"

    def tell(number: int, frame: Any) -> None:
        held = {
            "tasks": len(asyncio.all_tasks()),
            "scopes": sum(len(one) for one in scopes),
            "slots": sum(one.held for one in bulkheads),
            "waiting": sum(one.waiting for one in bulkheads),
        }
        written = path.with_suffix(".new")
        written.write_text(json.dumps(held))
        written.rename(path)

    signal.signal(signal.SIGUSR1, tell)  # Python runs it between two steps of the loop, which the signal wakes up
    serve(name, HopSettings(), announce=True)


if __name__ == "__main__":
    main(sys.argv[1])
