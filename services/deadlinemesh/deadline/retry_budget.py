"""How many retries one upstream may be given.

Retries mend what fails now and then. Where much fails they are more load on what is down already, and the callers' own limits do
not help: two retries of each call are three times the calls. So there is a share of all calls to the upstream that may be tried
again. A retry that fails as well counts twice, as it has only done harm: a fifth of the calls may be tried again while that helps,
and a tenth while it does not, which makes 1.1 attempts a call in a full outage.
"""

from __future__ import annotations

import math

from deadlinemesh.deadline.clock import SYSTEM_CLOCK, Clock

__all__ = ["RetryBudget"]

_HELPED, _IN_VAIN = 1.0, 2.0
"""What a retry counts."""

_FORGOTTEN = 0.1
"""So little of what was spent is no longer held against anybody: else the floor, once spent, would never be whole again."""


class RetryBudget:
    """Counts the calls and the retries of one upstream; both fade, by a factor e in each `fading` seconds.

    Retries may be `share` of the calls, or `floor` of them in each `fading` seconds where the calls are few.
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
        """Count a call: its first attempt begins."""
        self._fade()
        self._calls += 1

    def take(self) -> bool:
        """Count a retry, as one in vain until `helped` says otherwise. False: there is nothing left, do not make it."""
        self._fade()
        if self._spent + _IN_VAIN - _FORGOTTEN > max(self._floor, self._share * self._calls):
            return False
        self._spent += _IN_VAIN
        return True

    def helped(self) -> None:
        """Say of a retry that it succeeded."""
        self._fade()
        self._spent = max(0.0, self._spent - (_IN_VAIN - _HELPED))

    def _fade(self) -> None:
        now = self._clock.monotonic()
        left = math.exp((self._faded_at - now) / self._fading)
        self._calls *= left
        self._spent *= left
        self._faded_at = now
