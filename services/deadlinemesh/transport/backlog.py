"""How much later a call's deadline may be here than at its sender.

What remains is read when a call is taken up, and counts from there: by what the call had waited until then, its deadline is later
here. That wait is hidden: it shows only as far as it is longer than what `grpc-timeout` was rounded up by, which nobody knows. So
of calls that are taken up together, the one that shows most speaks for all.
"""

from __future__ import annotations

__all__ = ["Backlog", "Backlogs"]

TOGETHER = 0.25
"""Seconds: of a burst of 300 calls the last was taken up 0.1 to 0.2 s after the first."""

ROUNDED_UP = 0.045
"""The part of a call's time by which its deadline can be late here at most: where it waited longer, `grpc-timeout` is the tighter,
and that is rounded up by no more."""


class Backlog:
    """Calls that were taken up together."""

    __slots__ = ("began_at", "longest_wait")

    def __init__(self, began_at: float) -> None:
        self.began_at = began_at
        self.longest_wait = 0.0
        """Seconds that one of them is known to have waited at least."""

    def drift(self, granted: float) -> float:
        """Seconds by which the deadline of one of them may be late, which was granted `granted` seconds."""
        return min(self.longest_wait, ROUNDED_UP * granted)


class Backlogs:
    """Those of one hop, one after the other."""

    def __init__(self) -> None:
        self._now = Backlog(float("-inf"))

    def join(self, at: float, waited: float) -> Backlog:
        """The backlog of a call that is taken up at the instant `at`, and has waited `waited` seconds at least."""
        if at - self._now.began_at > TOGETHER:
            self._now = Backlog(at)
        if waited > self._now.longest_wait:
            self._now.longest_wait = waited
        return self._now
