"""The durations of recent work: the only service times that admission knows."""

from __future__ import annotations

import math
from collections import deque

__all__ = ["Kind", "RecentTimes"]

_KEPT = 64
"""Durations remembered."""
_CHANGED = 8
"""Last durations that show a change, if all are above or all below the earlier ones. The earlier
ones are then forgotten."""
_BEFORE = 4
"""Earlier durations needed to detect a change. With fewer, chance may look like a change."""

CANNOT = 0.1
"""Quantile of the times of one kind. Work with less time than this cannot become useful."""
ENOUGH = 8
"""Times needed before work is refused because of them."""


class RecentTimes:
    """The last durations of one kind of work, in seconds.

    Few are remembered on purpose: if an upstream turns slow, or recovers, this must show within a
    few calls.
    """

    def __init__(self) -> None:
        self._kept: deque[float] = deque(maxlen=_KEPT)
        self._ordered: list[float] | None = None

    def add(self, seconds: float) -> None:
        """Remember one duration."""
        self._kept.append(seconds)
        self._ordered = None
        if len(self._kept) >= _BEFORE + _CHANGED:
            self._forget_what_changed()

    def add_cut(self, seconds: float) -> None:
        """Remember work that was cut after `seconds`, if this is news.

        It would have taken longer. So its time counts only if nothing is known, or if it is above
        the median.
        """
        if not self._kept or seconds > self.quantile(0.5):
            self.add(seconds)

    def quantile(self, share: float) -> float:
        """The duration not exceeded by the fraction `share` of all; 0 while nothing is known."""
        if not self._kept:
            return 0.0
        if self._ordered is None:
            self._ordered = sorted(self._kept)
        return self._ordered[min(len(self._ordered) - 1, int(share * len(self._ordered)))]

    @property
    def mean(self) -> float:
        """The mean of the remembered durations; 0 while nothing is known."""
        return sum(self._kept) / len(self._kept) if self._kept else 0.0

    def __len__(self) -> int:
        return len(self._kept)

    def _forget_what_changed(self) -> None:
        kept = list(self._kept)
        before, after = kept[:-_CHANGED], kept[-_CHANGED:]
        if min(after) > max(before) or max(after) < min(before):
            self._kept.clear()
            self._kept.extend(after)


class Kind:
    """The recent times of one kind of work of one tenant. Other tenants are not judged by it."""

    def __init__(self) -> None:
        self.useful_after = RecentTimes()
        self.seen_at = -math.inf
        self._last = math.inf
        """Seconds until the last piece was useful; infinite if it was cut, or a probe runs."""

    def useful(self, seconds: float) -> None:
        """Note a piece of work that became useful after `seconds`."""
        self._last = seconds
        self.useful_after.add(seconds)

    def cut(self, seconds: float) -> None:
        """Note a piece of work that was cut after `seconds`, before it was useful."""
        self._last = math.inf
        self.useful_after.add_cut(seconds)

    def need(self) -> float:
        """Seconds that this kind needs at least to be useful; 0 while too little is known."""
        return self.useful_after.quantile(CANNOT) if len(self.useful_after) >= ENOUGH else 0.0

    def probe_due(self, left: float, now: float) -> bool:
        """True if work with `left` seconds may begin as a probe, although it needs more.

        That is so if the last times are old, or if the last piece took less than half of `left`.
        """
        return 2 * self._last < left or now - self.seen_at > max(1.0, 2 * self.need())

    def take_probe(self) -> None:
        """Note that a probe begins. The next needs its result, or a time without one."""
        self._last = math.inf
