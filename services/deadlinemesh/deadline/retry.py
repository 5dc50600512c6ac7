"""Retries that fit into the remaining time.

The rules come from the design, section 4. An attempt starts only if it and the backoff before it
fit. If another attempt may follow, an attempt is given up after ATTEMPT_SHARE of the remaining
time, or when it is silent for longer than usual. A hung call needs another try, and a try needs
time. A call may also be only slow, so the attempt goes on if no other attempt could replace it. The
wait that an upstream asks for is honoured only if it fits.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TypeVar

from deadlinemesh.deadline.context import current
from deadlinemesh.deadline.retry_budget import RetryBudget
from deadlinemesh.deadline.silence_timeout import SilenceTimeout

__all__ = ["Attempt", "Retry", "RetryPolicy", "retried"]

T = TypeVar("T")

ATTEMPT_SHARE = 0.8
"""Fraction of the remaining time that an attempt may take if another may follow."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The limits of the retries of one call. Durations are in seconds."""

    retries: int
    """Attempts after the first one."""
    viable_attempt: float = 0.05
    """An attempt with less time than this is not started."""
    patience: float | None = None
    """Time an attempt may be silent after a sign of life.

    None if unknown: then it is ATTEMPT_SHARE of the remaining time.
    """
    first_backoff: float = 0.1
    """Upper bound of the backoff before the first retry. It doubles with each retry."""
    longest_backoff: float = 5.0
    """Upper bound of each backoff. A wait that the upstream asks for is not bounded by it."""

    def backoff(self, retry: int, wanted: float | None, draw: float) -> float:
        """Seconds to wait before retry number `retry`, counted from 1.

        If the upstream asked for a wait, this is `wanted`. Else it is exponential with full jitter:
        the fraction `draw`, from 0 to 1, of a ceiling that doubles with each retry.
        """
        if wanted is not None:
            return wanted
        ceiling: float = min(self.longest_backoff, self.first_backoff * 2 ** (retry - 1))
        return ceiling * draw


@dataclass(frozen=True, slots=True)
class Retry:
    """The decision about one retry."""

    number: int
    """The number of the retry, counted from 1."""
    why: str
    """The reason of the last attempt's error, or HUNG if that attempt was silent for too long."""
    backoff: float
    """Seconds to wait before the retry."""
    refused: str
    """Empty if the retry is made. Else its obstacle: `limit`, `time`, `retry_after` or `budget`."""


class Attempt:
    """The handle that an attempt's work gets, to report its progress."""

    def __init__(self, policy: RetryPolicy, patience: SilenceTimeout, impatient: bool) -> None:
        self._policy = policy
        self._patience = patience
        self._impatient = impatient

    def alive(self) -> None:
        """Give a sign of life. The silence timeout starts again."""
        if self._impatient:
            share = current().remaining * ATTEMPT_SHARE
            self._patience.lasts(share if self._policy.patience is None else self._policy.patience)

    def settled(self) -> None:
        """Report results that must not come twice. The attempt is not given up any more."""
        self._impatient = False
        self._patience.is_endless()


async def retried(
    attempt: Callable[[Attempt], Awaitable[T]],
    policy: RetryPolicy,
    *,
    is_transient: Callable[[Exception], bool],
    budget: RetryBudget | None = None,
    fallback_ready: Callable[[float], bool] | None = None,
    waiting: Callable[[], AbstractContextManager[object]] = nullcontext,
    tell: Callable[[Retry], None] = lambda retry: None,
    draw: Callable[[], float] = random.random,
) -> T:
    """Call `attempt` until it succeeds, fails for good, or no retry fits the deadline and `budget`.

        async def get(attempt: Attempt) -> Reply:
            return await stub.Get(request)

        reply = await retried(get, RetryPolicy(retries=2), is_transient=is_unavailable)

    `waiting` is entered around each backoff. `tell` is called with each decision about a retry.

    `fallback_ready(remaining)` is for a caller that has a fallback. It is called with the remaining seconds
    when an attempt seems to hang. If it returns True, the attempt ends with AttemptHung, and the
    caller must try its fallback. `fallback_ready` and `tell` may run without a current context.

    Raises the last attempt's error, never an error of its own. Raises AttemptHung only after
    `fallback_ready` has returned True.
    """
    if budget is not None:
        budget.call()
    for number in count(1):
        following = _Following(policy, number, budget, tell, draw)
        patience = SilenceTimeout(
            following.instead if fallback_ready is None else partial(following.left_to, fallback_ready)
        )
        impatient = fallback_ready is not None or number <= policy.retries
        try:
            async with patience:
                if impatient:
                    patience.lasts(current().remaining * ATTEMPT_SHARE)
                result = await attempt(Attempt(policy, patience, impatient))
            if number > 1 and budget is not None:
                budget.helped()
            return result
        except Exception as error:
            if patience.gave_up:
                if fallback_ready is not None:
                    raise
            elif not (is_transient(error) and following.after(error)):
                raise
        with waiting():
            await asyncio.sleep(following.backoff)
    raise AssertionError("count() ends never")


class _Following:
    """Decides about the retry that may follow one attempt."""

    def __init__(
        self,
        policy: RetryPolicy,
        number: int,
        budget: RetryBudget | None,
        tell: Callable[[Retry], None],
        draw: Callable[[], float],
    ) -> None:
        self.backoff = 0.0
        self._here = current()
        self._policy = policy
        self._number = number
        self._budget = budget
        self._tell = tell
        self._draw = draw

    def after(self, error: Exception) -> bool:
        """True if the retry is made, after `error` ended the attempt."""
        return self._decided(getattr(error, "reason", type(error).__name__), getattr(error, "retry_after", None))

    def instead(self) -> bool:
        """True if a silent attempt is given up for the retry."""
        return self._decided("HUNG", None)

    def left_to(self, fallback_ready: Callable[[float], bool]) -> bool:
        """True if a silent attempt is given up for the caller's fallback."""
        return fallback_ready(self._here.remaining)

    def _decided(self, why: str, wanted: float | None) -> bool:
        self.backoff = self._policy.backoff(self._number, wanted, self._draw())
        refused = self._refused(wanted)
        self._tell(Retry(self._number, why, self.backoff, refused))
        return not refused

    def _refused(self, wanted: float | None) -> str:
        if self._number > self._policy.retries:
            return "limit"
        if self._here.remaining < self.backoff + self._policy.viable_attempt:
            return "time" if wanted is None else "retry_after"
        if self._budget is not None and not self._budget.take():
            return "budget"
        return ""
