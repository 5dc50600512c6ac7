"""Statistics and retries of upstreams: the tools and models of each tenant, across its runs.

The orchestrator owns all retries in the mesh, so they are counted here. Each tenant has separate
statistics. A tenant with failing calls does not use up the retries of others, and a tenant with
slow calls does not change the patience of others.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import TypeVar

from deadlinemesh.admission import RecentTimes
from deadlinemesh.deadline import Attempt, Clock, DeadlineContext, Retry, RetryBudget, RetryPolicy, current, retried
from deadlinemesh.orchestrator.allotment import Pace
from deadlinemesh.telemetry import FellBack, Retried, RetryRefused, Telemetry

__all__ = ["Stopwatch", "UpstreamStats", "Upstreams"]

T = TypeVar("T")

MOST_KNOWN = 4096
"""Upstreams of all tenants that are remembered. The least recently used is forgotten, and starts
anew."""

KNOWN = 5
"""Durations that must be remembered before they are used."""

USUALLY = 0.95
"""Quantile of the durations that patience and pace use as the usual maximum."""

NEWS_FOR = 10.0
"""Seconds after a success or a probe in which no probe is due. Twice the median if that is
longer."""

VIABLE = 0.05
"""Seconds below which no attempt is started."""

HANG_FACTOR, HANG_FLOOR_S = 3.0, 0.5
"""Factor on the USUALLY quantile, and seconds added to it. An attempt that is silent for longer
seems to hang."""


class UpstreamStats:
    """One upstream of one tenant: its retry budget and the durations of its successes."""

    def __init__(self, name: str, clock: Clock, telemetry: Telemetry, hop: str) -> None:
        self.name = name
        self._clock = clock
        self._budget = RetryBudget(clock)
        self._times = RecentTimes()
        self._per_token = RecentTimes()
        self._seen_at = -math.inf
        self._telemetry = telemetry
        self._hop = hop

    def took(self, seconds: float) -> None:
        """Add the duration of a success: seconds to the result, or to a model's first output."""
        self._times.add(seconds)
        self._seen_at = self._clock.monotonic()

    def take_probe(self) -> bool:
        """Take a probe of this upstream, if one is due. True if it was taken.

        A probe is a call for which there seems to be too little time. An upstream that is never
        called cannot show that it has recovered. The caller must then make the call.
        """
        now = self._clock.monotonic()
        if now - self._seen_at <= max(NEWS_FOR, 2 * self.usually):
            return False
        self._seen_at = now
        return True

    def take_fallback(self, seconds: float) -> bool:
        """Claim a call to this fallback: true if `seconds` is enough, or if a probe is due.

        If true, the caller must make the call.
        """
        return seconds >= self.viable or (seconds >= VIABLE and self.take_probe())

    def spoke(self, seconds: float, tokens: int) -> None:
        """Add the pace of a model's turn: `tokens` tokens, `seconds` from the first to the last."""
        if tokens > 1:
            self._per_token.add(seconds / (tokens - 1))

    @property
    def pace(self) -> Pace:
        """The speed of a model. Zeros while too little is known."""
        if not self._known:
            return Pace()
        return Pace(self._times.quantile(USUALLY), self._per_token.quantile(0.5))

    @property
    def usually(self) -> float:
        """Median duration in seconds; 0 while too little is known."""
        return self._times.quantile(0.5) if self._known else 0.0

    @property
    def viable(self) -> float:
        """Seconds below which another attempt is hopeless: the median, at least VIABLE."""
        return max(VIABLE, self.usually)

    @property
    def patience(self) -> float | None:
        """Seconds of silence after which an attempt seems to hang.

        None while too little is known.
        """
        return HANG_FACTOR * self._times.quantile(USUALLY) + HANG_FLOOR_S if self._known else None

    @property
    def _known(self) -> bool:
        return len(self._times) >= KNOWN

    async def retried(
        self,
        attempt: Callable[[Attempt], Awaitable[T]],
        retries: int,
        *,
        is_transient: Callable[[Exception], bool],
        waiting: Callable[[], AbstractContextManager[object]],
        fallback_ready: Callable[[float], bool] | None = None,
        idempotent: bool = True,
    ) -> T:
        """Call `deadline.retried` with this upstream's budget and times.

        Only `idempotent` work is retried.
        """
        caller = current()

        def tell(retry: Retry) -> None:
            if not retry.refused:
                event: Retried | RetryRefused = Retried(
                    self._hop, caller.tenant_id, caller.run_id, self.name, retry.number, retry.why, retry.backoff
                )
            else:
                refused = "not_idempotent" if retry.refused == "limit" and not idempotent else retry.refused
                event = RetryRefused(
                    self._hop, caller.tenant_id, caller.run_id, self.name, retry.number, retry.why, refused
                )
            self._telemetry.record(event)

        policy = RetryPolicy(retries if idempotent else 0, viable_attempt=self.viable, patience=self.patience)
        return await retried(
            attempt,
            policy,
            is_transient=is_transient,
            budget=self._budget,
            fallback_ready=fallback_ready,
            waiting=waiting,
            tell=tell,
        )

    def fell_back(self, caller: DeadlineContext, fallback: str, why: str) -> None:
        """Record that `fallback` replaces this upstream for the rest of the caller's run."""
        self._telemetry.record(FellBack(self._hop, caller.tenant_id, caller.run_id, self.name, fallback, why))


class Stopwatch:
    """Measures one attempt for its upstream's statistics.

    `begin` to `end` is the duration to a result or a model's first output. `speaks` to `finish` is
    the time of the rest of its output, for its pace.
    """

    def __init__(self, upstream: UpstreamStats) -> None:
        self._upstream = upstream
        self._began_at: float | None = None
        self._speaks_since: float | None = None

    def begin(self) -> None:
        self._began_at = current().clock.monotonic()

    def end(self) -> None:
        if self._began_at is not None:
            self._upstream.took(current().clock.monotonic() - self._began_at)
            self._began_at = None

    def speaks(self) -> None:
        """Note the first live output of a model. Its pace is measured from here."""
        if self._speaks_since is None:
            self._speaks_since = current().clock.monotonic()

    def finish(self, tokens: int) -> None:
        """Note the end of a model's output, and its tokens."""
        if self._speaks_since is not None:
            self._upstream.spoke(current().clock.monotonic() - self._speaks_since, tokens)


class Upstreams:
    """The upstreams of all tenants that were called recently."""

    def __init__(self, telemetry: Telemetry, hop: str) -> None:
        self._telemetry = telemetry
        self._hop = hop
        self._known: OrderedDict[tuple[str, str], UpstreamStats] = OrderedDict()

    def of(self, name: str) -> UpstreamStats:
        """The current tenant's upstream by name, such as `tool crm_lookup` or `model demo`."""
        caller = current()
        key = (caller.tenant_id, name)
        upstream = self._known.get(key)
        if upstream is None:
            upstream = UpstreamStats(name, caller.clock, self._telemetry, self._hop)
            self._known[key] = upstream
            if len(self._known) > MOST_KNOWN:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return upstream

    def __len__(self) -> int:
        return len(self._known)
