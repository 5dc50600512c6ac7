"""Keeps apart what would fall due together.

A hundred runs that are due at the same instant have to be ended one after the other all the same, and the last of them is late by
what ending the others takes. Whoever is due a little earlier than it had to be is not late. Where no time is to be given up, a few
may be due later instead: as late as they would have been.
"""

from __future__ import annotations

from collections import Counter
from itertools import chain
from typing import NamedTuple

__all__ = ["DeadlineSpreader", "Place"]


class Place(NamedTuple):
    """An instant that was given out."""

    at: float
    slot: int


class DeadlineSpreader:
    """Gives out instants, at most one in each `apart` seconds as long as there is room."""

    def __init__(self, apart: float) -> None:
        self._apart = apart
        self._taken: Counter[int] = Counter()
        self._crowded = 1024

    def place(self, wanted: float, *, earliest: float, latest: float, now: float, together: int = 1) -> Place:
        """A place near the instant `wanted`.

        It is the least taken up to `latest` if fewer than `together` have it; else the next free one
        down to `earliest`, else the least taken of all.
        """
        middle = int(wanted / self._apart)
        later = range(middle, middle + int((latest - wanted) / self._apart) + 1)
        slot = next((slot for slot in later if slot not in self._taken), None)
        if slot is None:
            slot = min(later, key=self._taken.__getitem__)
        if self._taken[slot] >= together:
            earlier = range(middle - 1, max(middle - int((wanted - earliest) / self._apart), 0) - 1, -1)
            slot = next((slot for slot in earlier if slot not in self._taken), None) or min(
                chain(later, earlier), key=self._taken.__getitem__
            )
        self._taken[slot] += 1
        if len(self._taken) > self._crowded:
            self._forget(int(now / self._apart))
        return Place(wanted + (slot - middle) * self._apart, slot)

    def release(self, place: Place) -> None:
        """Take back the place of a run that will not end there."""
        self._taken[place.slot] -= 1
        if self._taken[place.slot] <= 0:  # it may have been forgotten before
            del self._taken[place.slot]

    def __len__(self) -> int:
        return len(self._taken)

    def _forget(self, past: int) -> None:
        self._taken = Counter({slot: count for slot, count in self._taken.items() if slot >= past})
        self._crowded = max(1024, 2 * len(self._taken))
