"""How fast, and how many at once, each caller may make calls: a token bucket and a counter by key. No clock, no I/O.

The key is whatever callers are told apart by: a tenant, or a peer's address.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Excess", "Quota", "Quotas"]

RETRY_AFTER = 0.1
"""Seconds after which to come again where too many calls are at work: when one of them ends is not known."""

MOST_OWED = 10.0
"""Seconds at most in which a key makes no calls because of what those before were found to cost."""

_ROUNDING = 1e-6
"""Of a call, that may be lacking: who comes again when it was told to is not refused for an error of rounding."""

_FORGET_ABOVE = 1024
"""Keys that are kept without looking for those that need not be."""


@dataclass(frozen=True, slots=True)
class Quota:
    """The rate and the number of calls that one key is allowed."""

    per_second: float
    """Calls a second, in the long run."""
    burst: float
    """Calls at one instant, after a pause."""
    concurrent: int
    """Calls at work."""


@dataclass(frozen=True, slots=True)
class Excess:
    """Why a call exceeds its key's quota, and in how many seconds it need not."""

    limit: str
    """`calls_per_second` or `concurrent_calls`."""
    retry_after: float


@dataclass(slots=True)
class _Use:
    quota: Quota
    tokens: float
    filled_at: float
    calls: int = 0


class Quotas:
    """Counts the calls of every key. Every `begin` that returns None is followed by an `end`.

    >>> quotas, two = Quotas(), Quota(per_second=10, burst=2, concurrent=5)
    >>> [quotas.begin("acme", two, now=0.0) for _ in range(3)]
    [None, None, Excess(limit='calls_per_second', retry_after=0.1)]
    >>> quotas.begin("acme", two, now=0.1) is None
    True
    """

    def __init__(self) -> None:
        self._uses: dict[str, _Use] = {}
        self._crowded = _FORGET_ABOVE

    def begin(self, key: str, quota: Quota, now: float) -> Excess | None:
        """Count a call of `key` that begins at `now`. An excess means that it must not, and is not counted."""
        use = self._uses.get(key)
        if use is None:
            if len(self._uses) >= self._crowded:
                self._forget(now)
            use = self._uses[key] = _Use(quota, quota.burst, now)
        use.quota = quota
        use.tokens = min(quota.burst, use.tokens + (now - use.filled_at) * quota.per_second)
        use.filled_at = now
        if use.calls >= quota.concurrent:
            return Excess("concurrent_calls", RETRY_AFTER)
        if use.tokens < 1.0 - _ROUNDING:
            return Excess("calls_per_second", (1.0 - use.tokens) / quota.per_second)
        use.tokens -= 1.0
        use.calls += 1
        return None

    def charge(self, key: str, calls: float) -> None:
        """Count a call of `key` that is at work as so many more: it was found to be as dear. The key may owe them for MOST_OWED."""
        use = self._uses[key]
        use.tokens = max(use.tokens - calls, -MOST_OWED * use.quota.per_second)

    def end(self, key: str) -> None:
        """Count the end of a call that has begun."""
        self._uses[key].calls -= 1

    def __len__(self) -> int:
        return len(self._uses)

    def _forget(self, now: float) -> None:
        """Drop the keys that have their whole quota again: forgotten, they have it too."""
        self._uses = {
            key: use
            for key, use in self._uses.items()
            if use.calls or use.tokens + (now - use.filled_at) * use.quota.per_second < use.quota.burst
        }
        self._crowded = max(_FORGET_ABOVE, 2 * len(self._uses))
