"""Local refusal of calls that the server would refuse, as even a refusal costs the server work.

This is the adaptive throttling of Google's "Site Reliability Engineering", chapter 21. The client
counts its recent `attempts`, and as `accepts` those that were not shed. It refuses the next call
itself with the probability max(0, (attempts - K * accepts) / (attempts + 1)).
"""

from __future__ import annotations

import random
from collections.abc import Callable

__all__ = ["Throttle"]

K = 1.5
"""Attempts let through for each accepted one. The book's 2 detects a recovery a little sooner. But
our servers' work is not much dearer than their refusals, so they should not have to refuse as often
as they serve."""

HALF_LIFE = 0.5
"""Half-life of the counts, in seconds. After a recovery, the calls let through double in about a
second."""


class Throttle:
    """The counts of one kind of call. `draw` returns random numbers from 0 to below 1.

    A call counts once it is accepted or shed. Calls still open do not count.
    """

    def __init__(self, now: float, draw: Callable[[], float] = random.random) -> None:
        self._attempts = 0.0
        self._accepts = 0.0
        self._faded_at = now
        self._draw = draw

    def lets_through(self, now: float) -> bool:
        """True if a call may be made. A call refused here counts as an attempt."""
        self._fade(now)
        refusal = (self._attempts - K * self._accepts) / (self._attempts + 1)
        if refusal > 0 and self._draw() < refusal:
            self._attempts += 1
            return False
        return True

    def accepted(self, now: float, calls: int = 1) -> None:
        """Count `calls` accepted calls, regardless of their results."""
        self._fade(now)
        self._attempts += calls
        self._accepts += calls

    def shed(self, now: float, calls: int = 1) -> None:
        """Count `calls` shed calls."""
        self._fade(now)
        self._attempts += calls

    def calm(self, now: float) -> bool:
        """True if almost no refused calls are remembered."""
        self._fade(now)
        return self._attempts - self._accepts < 0.1

    def _fade(self, now: float) -> None:
        fading: float = 0.5 ** ((now - self._faded_at) / HALF_LIFE)
        self._attempts *= fading
        self._accepts *= fading
        self._faded_at = now
