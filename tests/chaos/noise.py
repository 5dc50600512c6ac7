"""What the machine did to us: for how long our processes could have run, and had to wait for a processor.

A promise of 50 ms cannot be kept by a process that is not let run for 100. The kernel knows how long each had to wait, so nobody
has to guess, and no test has to be more lenient than the machine was unfair: on a quiet one nothing is excused.
"""

from __future__ import annotations

import bisect
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

__all__ = ["Noise"]

EVERY = 0.02
"""Seconds between two looks."""


class Noise:
    """Looks at the processes that `pids` gives, all the time. Use it as a context manager."""

    def __init__(self, pids: Callable[[], Iterable[int]]) -> None:
        self._pids = pids
        self._looks: list[float] = []
        self._waited: list[float] = []
        """Seconds that all of them together had waited by then."""
        self._last: dict[int, int] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Noise:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def within(self, since: float, until: float) -> float:
        """Seconds that the processes together had to wait for a processor between two instants, as far as the looks can tell."""
        first = max(0, bisect.bisect_right(self._looks, since) - 1)
        last = min(len(self._looks) - 1, bisect.bisect_left(self._looks, until))
        return max(0.0, self._waited[last] - self._waited[first])

    def _watch(self) -> None:
        while not self._over.wait(EVERY):
            self._look()

    def _look(self) -> None:
        waited = 0
        for pid in self._pids():
            try:
                now = sum(int(task.read_text().split()[1]) for task in Path(f"/proc/{pid}/task").glob("*/schedstat"))
            except (OSError, IndexError):  # gone
                continue
            waited += max(0, now - self._last.get(pid, now))
            self._last[pid] = now
        self._waited.append((self._waited[-1] if self._waited else 0.0) + waited / 1e9)
        self._looks.append(time.monotonic())
