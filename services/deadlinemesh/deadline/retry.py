"""Attempts that fit into what remains.

The rules are those of the design, section 4. An attempt starts only if it and the wait before it fit. One that may be followed
by another is given up after ATTEMPT_SHARE of what remains, or when it has been silent for longer than is known to be usual: what
hangs deserves another try, and that needs time. What is merely slow does not, so an attempt goes on where no other could take its
place. An upstream's own wish to wait is honoured only if it fits.
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


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently. Durations are in seconds."""

    retries: int
    """Attempts after the first."""
    viable_attempt: float = 0.05
    """An attempt with less time than this is not worth starting."""
    patience: float | None = None
    """How long an attempt that gave a sign of life may then be silent; None, not known: ATTEMPT_SHARE of what remains."""
    first_backoff: float = 0.1
    longest_backoff: float = 5.0

    def backoff(self, retry: int, wanted: float | None, draw: float) -> float:
        """Seconds to wait before retry number `retry`, from 1.

        What the upstream `wanted` if it said so; else exponential with full jitter: `draw`, from 0 to 1, of the doubling
        ceiling.
        """
        if wanted is not None:
            return wanted
        ceiling: float = min(self.longest_backoff, self.first_backoff * 2 ** (retry - 1))
        return ceiling * draw


@dataclass(frozen=True, slots=True)
class Retry:
    """What was decided about one retry."""

    number: int
    """From 1."""
    why: str
    """What it was for: the reason of the error, or HUNG for an attempt that was silent for too long."""
    backoff: float
    """Seconds before it."""
    refused: str
    """Empty for a retry that is made. Else what forbade it: `limit`, `time`, `retry_after`, `budget`."""


class Attempt:
    """One attempt, as its work sees it."""

    def __init__(self, policy: RetryPolicy, patience: SilenceTimeout, impatient: bool) -> None:
        self._policy = policy
        self._patience = patience
        self._impatient = impatient

    def alive(self) -> None:
        """Give a sign of life: patience begins anew."""
        if self._impatient:
            share = current().remaining * ATTEMPT_SHARE
            self._patience.lasts(share if self._policy.patience is None else self._policy.patience)

    def settled(self) -> None:
        """Say that there are results that must not come twice: it is not given up any more."""
        self._impatient = False
        self._patience.is_endless()


async def retried(
    attempt: Callable[[Attempt], Awaitable[T]],
    policy: RetryPolicy,
    *,
    is_transient: Callable[[Exception], bool],
    budget: RetryBudget | None = None,
    relief: Callable[[float], bool] | None = None,
    waiting: Callable[[], AbstractContextManager[object]] = nullcontext,
    tell: Callable[[Retry], None] = lambda retry: None,
    draw: Callable[[], float] = random.random,
) -> T:
    """Call `attempt` until it succeeds, fails for good, or no further try fits into the current deadline and the `budget`.

    `waiting` is entered around each backoff; `tell` hears of each retry that is made or refused, in no context. `relief` stands for
    something else that the caller has to try. In no context either, it is asked once for each attempt that seems to hang, with the
    seconds that remain: whether the attempt is left to that. Where it is, that is to be tried.

    Raises the last attempt's error: retrying never replaces it by its own. Raises GivenUp only where `relief` said so.
    """
    if budget is not None:
        budget.call()
    for number in count(1):
        following = _Following(policy, number, budget, tell, draw)
        patience = SilenceTimeout(following.instead if relief is None else partial(following.left_to, relief))
        impatient = relief is not None or number <= policy.retries
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
                if relief is not None:
                    raise
            elif not (is_transient(error) and following.after(error)):
                raise
        with waiting():
            await asyncio.sleep(following.backoff)
    raise AssertionError("count() ends never")


class _Following:
    """Decides on the retry that may follow an attempt."""

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
        """Whether it is made, now that the attempt has failed."""
        return self._decided(getattr(error, "reason", type(error).__name__), getattr(error, "retry_after", None))

    def instead(self) -> bool:
        """Whether it is made instead of waiting for an attempt that is silent."""
        return self._decided("HUNG", None)

    def left_to(self, relief: Callable[[float], bool]) -> bool:
        """Whether it is left to `relief` instead."""
        return relief(self._here.remaining)

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
