"""Limits on the rate and the concurrency of each caller's calls.

They are a token bucket and a counter for each key. The key identifies the caller: a tenant, or a
peer's address. No clock, no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Excess", "Quota", "Quotas"]

RETRY_AFTER = 0.1
"""Seconds of `retry_after` for too many concurrent calls. The end of none of them is known."""

MOST_OWED = 10.0
"""Seconds of the longest time without calls for a key, because its earlier calls were expensive."""

_ROUNDING = 1e-6
"""Fraction of a token that may be missing, so that a caller that waits for `retry_after` is not
refused for a rounding error."""

_FORGET_ABOVE = 1024
"""Keys kept before a search for keys that can be dropped."""


@dataclass(frozen=True, slots=True)
class Quota:
    """The limits on the calls of one key."""

    per_second: float
    """Calls per second, in the long run."""
    burst: float
    """Calls at one instant, after a pause: the size of the token bucket."""
    concurrent: int
    """Calls running at once."""


@dataclass(frozen=True, slots=True)
class Excess:
    """The limit that a call exceeds, and the seconds to wait before it is tried again."""

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
    """Counts the calls of every key. Call `end` after every `begin` that returned None.

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
        """Count a call of `key` that begins at the instant `now`.

        Returns an Excess, and does not count the call, if it must not begin.
        """
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
        """Count a running call of `key` as `calls` more, because it proved expensive.

        The key's debt is at most its calls of MOST_OWED seconds.
        """
        use = self._uses[key]
        use.tokens = max(use.tokens - calls, -MOST_OWED * use.quota.per_second)

    def end(self, key: str) -> None:
        """Count the end of a call that `begin` has counted."""
        self._uses[key].calls -= 1

    def __len__(self) -> int:
        return len(self._uses)

    def _forget(self, now: float) -> None:
        """Drop the keys that have their whole quota again: a new key has it too."""
        self._uses = {
            key: use
            for key, use in self._uses.items()
            if use.calls or use.tokens + (now - use.filled_at) * use.quota.per_second < use.quota.burst
        }
        self._crowded = max(_FORGET_ABOVE, 2 * len(self._uses))
