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

HALF_LIFE = 0.5
"""Seconds in which half of what was seen is forgotten. After a recovery, what is let through doubles in about a second."""


class Throttle:
    """Keeps count for one kind of call. `draw` gives numbers from 0 to below 1.

    A call counts once it is known to be accepted or shed: those whose fate is still open say nothing.
    """

    def __init__(self, now: float, draw: Callable[[], float] = random.random) -> None:
        self._attempts = 0.0
        self._accepts = 0.0
        self._faded_at = now
        self._draw = draw

    def lets_through(self, now: float) -> bool:
        """Whether to make a call. One that is not made counts as an attempt."""
        self._fade(now)
        refusal = (self._attempts - K * self._accepts) / (self._attempts + 1)
        if refusal > 0 and self._draw() < refusal:
            self._attempts += 1
            return False
        return True

    def accepted(self, now: float, calls: int = 1) -> None:
        """Count a call that was accepted, whatever becomes of it; or as many as it stands for."""
        self._fade(now)
        self._attempts += calls
        self._accepts += calls

    def shed(self, now: float, calls: int = 1) -> None:
        """Count a call that was shed, or as many as it stands for."""
        self._fade(now)
        self._attempts += calls

    def calm(self, now: float) -> bool:
        """Whether next to nothing is remembered of calls that were refused."""
        self._fade(now)
        return self._attempts - self._accepts < 0.1

    def _fade(self, now: float) -> None:
        fading: float = 0.5 ** ((now - self._faded_at) / HALF_LIFE)
        self._attempts *= fading
        self._accepts *= fading
        self._faded_at = now
