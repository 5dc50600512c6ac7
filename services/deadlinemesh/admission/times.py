"""How long recent work took: the only service times that admission knows."""

from __future__ import annotations

import math
from collections import deque

__all__ = ["Kind", "RecentTimes"]

_KEPT = 64
"""Durations that are remembered."""
_CHANGED = 8
"""So many in a row that are all beyond everything before them are a change, and what was before them is forgotten."""
_BEFORE = 4
"""Those before them that it takes to tell: of fewer, chance would forget the longest and the shortest."""

CANNOT = 0.1
"""Work that has less time than this quantile of its kind took cannot finish."""
ENOUGH = 8
"""Pieces of work to have seen before one is refused for what others took."""


class RecentTimes:
    """The last durations of one kind of work, in seconds.

    Memory is short on purpose: an upstream that turned slow, or recovered, must be believed within a few calls.
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
        """Remember work that was cut after `seconds`: it would have taken longer, which says something only where that is news."""
        if not self._kept or seconds > self.quantile(0.5):
            self.add(seconds)

    def quantile(self, share: float) -> float:
        """The duration that `share` of the remembered ones do not exceed; 0 while nothing is known."""
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
    """What is known of one kind of one tenant's work: another's must not be judged by it."""

    def __init__(self) -> None:
        self.useful_after = RecentTimes()
        self.seen_at = -math.inf
        self._last = math.inf
        """What the last piece took until it was of use; for ever, if it was cut before that, or another is being tried for it."""

    def useful(self, seconds: float) -> None:
        """A piece became of use after so many seconds."""
        self._last = seconds
        self.useful_after.add(seconds)

    def cut(self, seconds: float) -> None:
        """A piece was cut after so many seconds, and of no use."""
        self._last = math.inf
        self.useful_after.add_cut(seconds)

    def need(self) -> float:
        """Seconds without which it cannot become of use; 0 while too little is known."""
        return self.useful_after.quantile(CANNOT) if len(self.useful_after) >= ENOUGH else 0.0

    def worth_a_try(self, left: float, now: float) -> bool:
        """Whether one that has `left` seconds should be let through to see: what is known is old, or the last piece belies it."""
        return 2 * self._last < left or now - self.seen_at > max(1.0, 2 * self.need())

    def try_one(self) -> None:
        """One that was let through to see begins, and no other until there is news of it."""
        self._last = math.inf
