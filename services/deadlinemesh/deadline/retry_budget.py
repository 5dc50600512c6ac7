"""A limit on the retries of one upstream.

Retries repair occasional failures. In an outage they only add load. Limits per call do not prevent
this: two retries of each call make three times the calls. So only a share of all calls to the
upstream may be retried. A retry that fails counts twice, as it did only harm. By default, a fifth
of the calls may be retried while retries help, and a tenth while they do not. In a full outage this
makes 1.1 attempts a call.
"""

from __future__ import annotations

import math

from deadlinemesh.deadline.clock import SYSTEM_CLOCK, Clock

__all__ = ["RetryBudget"]

_HELPED, _IN_VAIN = 1.0, 2.0
"""The cost of a retry that succeeds, and of one that fails."""

_FORGOTTEN = 0.1
"""A spent cost up to this counts as zero. It decays exponentially, so the floor would else never
be whole again."""


class RetryBudget:
    """Counts the calls and retries of one upstream. Both fade by the factor e in `fading` seconds.

        budget = RetryBudget(share=0.2)
        budget.call()
        if budget.take():
            await call_again()
            budget.helped()

    At most the fraction `share` of the calls may be retried, and half of it if the retries fail. If
    the calls are few, `floor` failed retries are allowed in `fading` seconds.
    """

    def __init__(
        self, clock: Clock = SYSTEM_CLOCK, *, share: float = 0.2, floor: float = 3.0, fading: float = 10.0
    ) -> None:
        self._clock = clock
        self._share = share
        self._floor = floor * _IN_VAIN
        self._fading = fading
        self._calls = 0.0
        self._spent = 0.0
        self._faded_at = clock.monotonic()

    def call(self) -> None:
        """Count a call, as its first attempt begins."""
        self._fade()
        self._calls += 1

    def take(self) -> bool:
        """Count a retry as failed, until `helped`. False if none is left: do not make the retry."""
        self._fade()
        if self._spent + _IN_VAIN - _FORGOTTEN > max(self._floor, self._share * self._calls):
            return False
        self._spent += _IN_VAIN
        return True

    def helped(self) -> None:
        """Count a retry as successful, after `take`."""
        self._fade()
        self._spent = max(0.0, self._spent - (_IN_VAIN - _HELPED))

    def _fade(self) -> None:
        now = self._clock.monotonic()
        left = math.exp((self._faded_at - now) / self._fading)
        self._calls *= left
        self._spent *= left
        self._faded_at = now
