"""Refuses at home what the other side would refuse anyway, as even a refusal costs it something.

This is the adaptive throttling of Google's "Site Reliability Engineering", chapter 21: a caller that has lately made `attempts`, of
which `accepts` were not shed, refuses the next one itself with probability max(0, (attempts - K * accepts) / (attempts + 1)).
"""

from __future__ import annotations

import random
from collections.abc import Callable

__all__ = ["Throttle"]

K = 1.5
"""So many attempts are let through for each that is accepted. The book's 2 learns of a recovery a little sooner; our servers' work
is not so much dearer than their refusals that they should have to refuse as often as they serve."""

HALF_LIFE = 2.0
"""Seconds in which half of what was seen is forgotten. After a recovery, what is let through doubles in about 4 s."""


class Throttle:
    """Keeps count for one kind of call. `draw` gives numbers from 0 to below 1.

    A call counts as accepted until it is known to be shed: a refusal comes at once, and an answer may take minutes.
    """

    def __init__(self, now: float, draw: Callable[[], float] = random.random) -> None:
        self._attempts = 0.0
        self._refused = 0.0
        self._faded_at = now
        self._draw = draw

    @property
    def calm(self) -> bool:
        """Whether next to nothing is remembered of calls that were refused."""
        return self._refused < 0.1

    def attempt(self, now: float) -> bool:
        """Count one attempt. False: do not make it."""
        self._fade(now)
        refusal = (self._attempts - K * (self._attempts - self._refused)) / (self._attempts + 1)
        self._attempts += 1
        if refusal > 0 and self._draw() < refusal:
            self._refused += 1
            return False
        return True

    def shed(self, now: float) -> None:
        """Count an attempt as refused, that the other side has shed."""
        self._fade(now)
        self._refused += 1

    def _fade(self, now: float) -> None:
        fading: float = 0.5 ** ((now - self._faded_at) / HALF_LIFE)
        self._attempts *= fading
        self._refused *= fading
        self._faded_at = now
