"""Processes left by dead workers, attributed to their workers as far as possible.

The keeper inherits such a process. It sees only one more child. Two facts can tell the worker:

- Its session. A worker has a separate session that no other process can join. Every process in it
  came from that worker.
- Its time. A process that left the session by setsid(2) came from a process that has died since the
  keeper last looked, or from another leftover. If these belong to one worker only, so does the
  process.

Otherwise it may belong to any of several workers. Then it delays the reported end of all of them,
but only for a while: a hanging process of one tenant must not block all tenants.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

__all__ = ["SHARED_FOR", "Leftovers"]

SHARED_FOR = 1.0
"""Seconds that a killed process with several possible owners delays the end of all of them. Nearly
all processes die within milliseconds.
"""


@dataclass(slots=True)
class _Leftover:
    owners: frozenset[int]
    """Numbers of the workers that may have left it. Exactly one did."""
    until: float | None
    """The instant until when it delays the end of its owners; None for as long as it lives."""
    holds: bool = True


class Leftovers:
    """The inherited processes that the keeper has killed and not yet waited for.

    Workers are not among them.
    """

    def __init__(self) -> None:
        self._by_pid: dict[int, _Leftover] = {}

    def __contains__(self, pid: int) -> bool:
        return pid in self._by_pid

    @property
    def owners(self) -> frozenset[int]:
        """Numbers of all workers that may have left some of them."""
        return frozenset().union(*(one.owners for one in self._by_pid.values()))

    @property
    def next_release_at(self) -> float | None:
        """The next instant when `release` finds a process, unless that process ends before."""
        return min((one.until for one in self._by_pid.values() if one.holds and one.until is not None), default=None)

    def add(self, pid: int, owners: Set[int], now: float) -> None:
        """Note a process found at `now`, left by one of `owners`."""
        self._by_pid[pid] = _Leftover(frozenset(owners), now + SHARED_FOR if len(owners) > 1 else None)

    def gone(self, pid: int) -> frozenset[int]:
        """Forget a process that has been waited for. Returns its possible owners.

        They are also the possible owners of the children that it had.
        """
        known = self._by_pid.pop(pid, None)
        return frozenset() if known is None else known.owners

    def release(self, now: float) -> list[int]:
        """End the delay by shared processes that have lasted for SHARED_FOR seconds.

        Returns their process ids, each only once.
        """
        late = [pid for pid, one in self._by_pid.items() if one.holds and one.until is not None and one.until <= now]
        for pid in late:
            self._by_pid[pid].holds = False
        return late

    def hold(self, number: int) -> bool:
        """True if any of them delays the end of worker `number`."""
        return any(one.holds and number in one.owners for one in self._by_pid.values())
