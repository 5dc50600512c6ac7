"""Makes any Python process spin when it is told to: SIGUSR1 keeps its main thread, and so its event loop, busy while the file
that SPIN_WHILE names is there.

Python imports this by itself where the folder is in PYTHONPATH.
"""

from __future__ import annotations

import os
import signal


def _spin(*_: object) -> None:
    while os.path.exists(os.environ["SPIN_WHILE"]):
        pass


signal.signal(signal.SIGUSR1, _spin)
