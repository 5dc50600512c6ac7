"""What dead workers have left behind: whose it is, as far as that can be known, and whose end it holds up.

The keeper inherits such a process, and sees only that it has one more child. Two facts tell whose it was. A worker's session is its
own and nobody can join it, so what is in it is that worker's. What has left it by setsid(2) comes from something that has died
since the keeper last looked, or from another leftover: if only one worker can be meant, it is that worker's. Else it may be any
one's of several, and holds up the end of each, but only for a while: what hangs for one tenant must not hang for all.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

__all__ = ["SHARED_FOR", "Leftovers"]

SHARED_FOR = 1.0
"""Seconds for which a killed process that may be one of several workers' holds up all of them. Nearly all take milliseconds."""


@dataclass(slots=True)
class _Leftover:
    owners: frozenset[int]
    """The workers, by number, one of which it comes from."""
    until: float | None
    """The instant until which it holds up its owners; None where that is for as long as it lives."""
    holds: bool = True


class Leftovers:
    """The processes, other than workers, that the keeper has inherited and killed, and not yet waited for."""

    def __init__(self) -> None:
        self._by_pid: dict[int, _Leftover] = {}

    def __contains__(self, pid: int) -> bool:
        return pid in self._by_pid

    @property
    def owners(self) -> frozenset[int]:
        """All workers that something may have been left by."""
        return frozenset().union(*(one.owners for one in self._by_pid.values()))

    @property
    def next_release_at(self) -> float | None:
        """The next instant at which `release` finds something, unless it is gone before."""
        return min((one.until for one in self._by_pid.values() if one.holds and one.until is not None), default=None)

    def add(self, pid: int, owners: Set[int], now: float) -> None:
        """Note one that was found at `now`, and that one of `owners` must have left."""
        self._by_pid[pid] = _Leftover(frozenset(owners), now + SHARED_FOR if len(owners) > 1 else None)

    def gone(self, pid: int) -> frozenset[int]:
        """Forget one that has been waited for. Its owners, who may have left what it had below it, too."""
        known = self._by_pid.pop(pid, None)
        return frozenset() if known is None else known.owners

    def release(self, now: float) -> list[int]:
        """Have what is shared, and has held up its owners for long enough, do so no longer. Its process ids, once."""
        late = [pid for pid, one in self._by_pid.items() if one.holds and one.until is not None and one.until <= now]
        for pid in late:
            self._by_pid[pid].holds = False
        return late

    def hold(self, number: int) -> bool:
        """Whether a worker's end is held up by any of them."""
        return any(one.holds and number in one.owners for one in self._by_pid.values())
