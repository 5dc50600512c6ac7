"""Spreads the due instants of runs, so that few of them fall together.

A hundred runs with the same due instant must be ended one after the other. The last one is late by
the time that ending the others takes. A run that is due a little earlier is not late. A run that
can give up no time may be due later instead: it would be as late anyway.
"""

from __future__ import annotations

from collections import Counter
from itertools import chain
from typing import NamedTuple

__all__ = ["DeadlineSpreader", "Place"]


class Place(NamedTuple):
    """A reserved instant: `at`, in `slot`."""

    at: float
    slot: int


class DeadlineSpreader:
    """Reserves instants: at most one per `apart` seconds, as long as there is room."""

    def __init__(self, apart: float) -> None:
        self._apart = apart
        self._taken: Counter[int] = Counter()
        self._crowded = 1024

    def place(self, wanted: float, *, earliest: float, latest: float, now: float, together: int = 1) -> Place:
        """Reserve a place near the instant `wanted`.

        The first choice is the least taken slot from `wanted` to `latest`, if fewer than `together`
        have it. The second is the next free slot back to `earliest`. The last is the least taken
        slot of all.
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
        """Free the place of a run that has ended or will not end there."""
        self._taken[place.slot] -= 1
        if self._taken[place.slot] <= 0:  # below zero if the slot was forgotten before
            del self._taken[place.slot]

    def __len__(self) -> int:
        return len(self._taken)

    def _forget(self, past: int) -> None:
        self._taken = Counter({slot: count for slot, count in self._taken.items() if slot >= past})
        self._crowded = max(1024, 2 * len(self._taken))
