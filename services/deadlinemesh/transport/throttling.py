"""Local throttling: sheds calls that the other side would shed, before anything is sent.

The calls of one method are judged for each tenant, and for each kind if the caller names kinds. So
the refusals of one tenant hold back no other tenant, and the refusals of one kind no other kind.

While nothing is shed, only one call in WATCH_ONE_IN is watched, and the others cost nothing. They
give the number of calls accepted before the first refusal. A burst of refusals says little about a
server that has accepted ten times as many calls in that second.
"""

from __future__ import annotations

import grpc

from deadlinemesh.admission import Throttle
from deadlinemesh.deadline import Clock, DeadlineContext
from deadlinemesh.errors import Shed
from deadlinemesh.transport.ended import code_of_ended, error_of_ended

__all__ = ["Throttling"]

WATCH_ONE_IN = 8
"""One call in so many is watched, for a tenant and kind without recent refusals."""

MOST_KNOWN = 1024
"""Pairs of tenant and kind, without recent refusals, that are remembered."""

_SOON = 1.0
"""Seconds after which a caller that was shed here may try again. A throttle doubles the calls it
lets through in a few seconds.
"""


class Throttling:
    """Watches the calls of one method."""

    def __init__(self, method: str) -> None:
        self.method = method
        self._throttles: dict[tuple[str, str], Throttle] = {}
        """By tenant and kind, if calls were shed lately."""
        self._calm: dict[tuple[str, str], Throttle] = {}
        """By tenant and kind, if none was: the throttle to begin with."""
        self._calm_calls = 0

    def admit(self, context: DeadlineContext, kind: str) -> Watch | None:
        """Count a call that is about to be made. Raises Shed if it should not be made.

        Returns a `Watch` for the call's outcome; None if the call is not watched.
        """
        key = (context.tenant_id, kind)
        throttle = self._throttles.get(key)
        if throttle is None:
            self._calm_calls += 1
            return None if self._calm_calls % WATCH_ONE_IN else Watch(self, key, context.clock, stands_for=WATCH_ONE_IN)
        now = context.clock.monotonic()
        if not throttle.lets_through(now):
            raise Shed(
                f"{self.method} sheds most such calls of this tenant, so this one was not even sent", retry_after=_SOON
            )
        if throttle.calm(now):
            self._calm[key] = self._throttles.pop(key)
        return Watch(self, key, context.clock)

    def accepted(self, key: tuple[str, str], now: float, calls: int) -> None:
        """Count `calls` accepted calls for one watched call that was accepted."""
        throttle = self._throttles.get(key) or self._calm.get(key)
        if throttle is None:
            if len(self._calm) >= MOST_KNOWN:
                self._calm.clear()  # it was half a second's knowledge
            throttle = self._calm[key] = Throttle(now)
        throttle.accepted(now, calls)

    def shed(self, key: tuple[str, str], now: float, calls: int) -> None:
        """Count `calls` shed calls for one watched call that was shed; only one if nothing is known
        of the caller.
        """
        throttle = self._throttles.get(key)
        if throttle is None:
            self._throttles = {one: other for one, other in self._throttles.items() if not other.calm(now)}
            throttle = self._calm.pop(key, None)
            if throttle is None:
                throttle, calls = Throttle(now), 1
            self._throttles[key] = throttle
        throttle.shed(now, calls)


class Watch:
    """Reports the outcome of one call to its `Throttling`: accepted or shed, by its first response
    or its end.
    """

    def __init__(self, throttling: Throttling, key: tuple[str, str], clock: Clock, stands_for: int = 1) -> None:
        self._throttling = throttling
        self._key = key
        self._clock = clock
        self._stands_for = stands_for
        self._over = False

    def answered(self) -> None:
        """Record that a response has come."""
        if not self._over:
            self._over = True
            self._throttling.accepted(self._key, self._clock.monotonic(), self._stands_for)

    def ended(self, call: grpc.aio.Call) -> None:
        """Record that the call has ended."""
        if self._over:
            return
        code = code_of_ended(call)
        if code is grpc.StatusCode.OK:
            self.answered()
        elif code is grpc.StatusCode.RESOURCE_EXHAUSTED and isinstance(
            error_of_ended(call, self._throttling.method), Shed
        ):
            self.shed()

    def shed(self) -> None:
        """Record that the call was shed."""
        self._over = True
        self._throttling.shed(self._key, self._clock.monotonic(), self._stands_for)
