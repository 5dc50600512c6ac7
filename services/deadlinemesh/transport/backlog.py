"""How much later a call's deadline may be here than at its sender.

A hop reads the remaining time when it takes a call up, and counts from that instant. If the call
waited before that, its deadline is later here by the length of the wait. Most of the wait is
hidden: it shows only as far as it exceeds the rounding of `grpc-timeout`, and that amount is
unknown. So for calls that are taken up together, the longest visible wait counts for all of them.
"""

from __future__ import annotations

__all__ = ["Backlog", "Backlogs"]

TOGETHER = 0.25
"""Seconds in which calls count as taken up together. Measured: of a burst of 300 calls, the last
was taken up 0.1 to 0.2 s after the first.
"""

ROUNDED_UP = 0.045
"""Largest share of a call's time by which its deadline can be late here. After a longer wait
`grpc-timeout` is the tighter deadline, and it is rounded up by no more than this share.
"""


class Backlog:
    """A group of calls that were taken up together."""

    __slots__ = ("began_at", "longest_wait")

    def __init__(self, began_at: float) -> None:
        self.began_at = began_at
        self.longest_wait = 0.0
        """Seconds: the longest wait that one of the calls shows."""

    def drift(self, granted: float) -> float:
        """Seconds by which the deadline may be late, for a call granted `granted` seconds."""
        return min(self.longest_wait, ROUNDED_UP * granted)


class Backlogs:
    """The backlogs of one hop, one after the other."""

    def __init__(self) -> None:
        self._now = Backlog(float("-inf"))

    def join(self, at: float, waited: float) -> Backlog:
        """Return the backlog of a call taken up at the instant `at`, at least `waited` s after its
        sending.
        """
        if at - self._now.began_at > TOGETHER:
            self._now = Backlog(at)
        if waited > self._now.longest_wait:
            self._now.longest_wait = waited
        return self._now
