"""What the orchestrator has learned of each upstream, a tool or a model, across the runs of one tenant.

It is the only owner of retries in the mesh, so it is here that they are counted. Each tenant has its own books: one whose calls
all fail uses up no other's retries, and one whose calls take long makes nobody else patient.
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
"""Upstreams of tenants that are remembered; those not called for longest are forgotten, and then start anew."""

KNOWN = 5
"""So many durations are knowledge."""

USUALLY = 0.95
"""The part of the attempts that takes no longer than what is usual."""

NEWS_FOR = 10.0
"""Seconds for which what was seen last is news; or twice what is usual, if that is longer."""

VIABLE = 0.05
"""Seconds without which no attempt at anything is worth starting."""

PATIENCE, PATIENCE_FLOOR = 3.0, 0.5
"""An attempt seems to hang when it has been silent for so many times what is usual, and so many seconds more."""


class UpstreamStats:
    """One upstream of one tenant: how many retries it may have, and how long its successes took."""

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
        """Remember a success: seconds from its beginning to its result, or to a model's first output."""
        self._times.add(seconds)
        self._seen_at = self._clock.monotonic()

    def worth_a_try(self) -> bool:
        """Whether to call it once though there seems to be no time for it: who is not called any more has no way to show better."""
        now = self._clock.monotonic()
        if now - self._seen_at <= max(NEWS_FOR, 2 * self.usually):
            return False
        self._seen_at = now
        return True

    def may_relieve(self, seconds: float) -> bool:
        """Whether it is to be called in place of another, with so many seconds left. Who is told so calls it."""
        return seconds >= self.viable or (seconds >= VIABLE and self.worth_a_try())

    def spoke(self, seconds: float, tokens: int) -> None:
        """Remember a model's turn: seconds from its first token to its last, and how many these were."""
        if tokens > 1:
            self._per_token.add(seconds / (tokens - 1))

    @property
    def pace(self) -> Pace:
        """How fast it speaks, if it is a model."""
        if not self._known:
            return Pace()
        return Pace(self._times.quantile(USUALLY), self._per_token.quantile(0.5))

    @property
    def usually(self) -> float:
        """Seconds that it takes, half of the time; 0 while too little is known."""
        return self._times.quantile(0.5) if self._known else 0.0

    @property
    def viable(self) -> float:
        """Seconds without which another attempt is hopeless: half of those known took longer."""
        return max(VIABLE, self.usually)

    @property
    def patience(self) -> float | None:
        """Seconds of silence after which an attempt seems to hang; None while too little is known."""
        return PATIENCE * self._times.quantile(USUALLY) + PATIENCE_FLOOR if self._known else None

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
        relief: Callable[[float], bool] | None = None,
        idempotent: bool = True,
    ) -> T:
        """`deadline.retried` with what is known of this upstream. What is not `idempotent` is not tried again."""
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
            relief=relief,
            waiting=waiting,
            tell=tell,
        )

    def fell_back(self, caller: DeadlineContext, fallback: str, why: str) -> None:
        """Tell that `fallback` takes this upstream's place for the rest of the caller's run."""
        self._telemetry.record(FellBack(self._hop, caller.tenant_id, caller.run_id, self.name, fallback, why))


class Stopwatch:
    """Has an upstream remember how long it took to come from the beginning to what was waited for first, and from there."""

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
        """A model says something as it makes it, so that from here on it can be told how fast."""
        if self._speaks_since is None:
            self._speaks_since = current().clock.monotonic()

    def finish(self, tokens: int) -> None:
        """A model has said all, so many tokens."""
        if self._speaks_since is not None:
            self._upstream.spoke(current().clock.monotonic() - self._speaks_since, tokens)


class Upstreams:
    """Every upstream that was called lately, by tenant."""

    def __init__(self, telemetry: Telemetry, hop: str) -> None:
        self._telemetry = telemetry
        self._hop = hop
        self._known: OrderedDict[tuple[str, str], UpstreamStats] = OrderedDict()

    def of(self, name: str) -> UpstreamStats:
        """The current tenant's upstream of this name, such as `tool crm_lookup` or `model demo`."""
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
