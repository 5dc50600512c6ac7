"""Keeps apart what would fall due together.

A hundred runs that are due at the same instant have to be ended one after the other all the same, and the last of them is late by
what ending the others takes. Whoever is due a little earlier than it had to be is not late.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

__all__ = ["Place", "Stagger"]


class Place(NamedTuple):
    """An instant that was given out."""

    at: float
    slot: int


class Stagger:
    """Gives out instants, at most one in each `apart` seconds as long as there is room."""

    def __init__(self, apart: float) -> None:
        self._apart = apart
        self._taken: Counter[int] = Counter()
        self._crowded = 1024

    def place(self, latest: float, earliest: float, now: float) -> Place:
        """The latest instant up to `latest` that nobody has, or, where all since `earliest` are taken, that the fewest have."""
        highest = int(latest / self._apart)
        slots = range(highest, max(highest - int((latest - earliest) / self._apart), 0) - 1, -1)
        slot = next((slot for slot in slots if slot not in self._taken), None)
        if slot is None:
            slot = min(slots, key=self._taken.__getitem__)
        self._taken[slot] += 1
        if len(self._taken) > self._crowded:
            self._forget(int(now / self._apart))
        return Place(latest - (highest - slot) * self._apart, slot)

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
