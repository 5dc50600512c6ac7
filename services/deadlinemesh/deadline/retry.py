"""Attempts that fit into what remains.

The rules are those of the design, section 4: an attempt starts only if it and the wait before it fit; an attempt that may be
followed by another gets at most ATTEMPT_SHARE of what remains, so that the other has a chance; an upstream's own wish to wait
is honoured only if it fits.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

from deadlinemesh.deadline.context import current
from deadlinemesh.deadline.narrowed import narrowed_after
from deadlinemesh.errors import DeadlineSpent

__all__ = ["RetryPolicy", "retried"]

T = TypeVar("T")

ATTEMPT_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently. Durations are in seconds."""

    retries: int
    """Attempts after the first."""
    viable_attempt: float = 0.05
    """An attempt with less time than this is not worth starting."""
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


async def retried(
    attempt: Callable[[], Awaitable[T]],
    policy: RetryPolicy,
    *,
    is_transient: Callable[[Exception], bool],
    waiting: Callable[[], AbstractContextManager[object]] = nullcontext,
    draw: Callable[[], float] = random.random,
) -> T:
    """Call `attempt` until it succeeds, fails for good, or no further try fits into the current deadline.

    `waiting` is entered around each backoff. Raises the last attempt's error: retrying never replaces it by its own.
    """
    for retry in range(1, policy.retries + 1):
        narrowed = narrowed_after(current().remaining * ATTEMPT_SHARE, "attempt")
        try:
            async with narrowed:
                return await attempt()
        except Exception as error:
            ran_out = isinstance(error, DeadlineSpent) and narrowed.expired
            if not (ran_out or is_transient(error)):
                raise
            backoff = policy.backoff(retry, getattr(error, "retry_after", None), draw())
            if current().remaining < backoff + policy.viable_attempt:
                raise
        with waiting():
            await asyncio.sleep(backoff)
    return await attempt()
