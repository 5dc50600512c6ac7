"""Local throttling: calls that would be shed over there are shed here, before anything is sent.

One method's calls are judged tenant by tenant, and kind by kind where their caller names kinds: who is refused for what it does
itself holds nobody else back, nor itself where it does something else. While nothing is shed, only one call in WATCH_ONE_IN is
looked at, which costs the others nothing; it tells how many were accepted before the first that is not. A burst of refusals says
little of a server that has accepted ten times as many in that second.
"""

from __future__ import annotations

import grpc

from deadlinemesh.admission import Throttle
from deadlinemesh.deadline import Clock, DeadlineContext
from deadlinemesh.errors import Shed
from deadlinemesh.transport.ended import code_of_ended, error_of_ended

__all__ = ["Throttling"]

WATCH_ONE_IN = 8
"""Of the calls of which nothing was shed lately."""

MOST_KNOWN = 1024
"""Tenants' kinds of calls of which nothing was shed lately and something is known."""

_SOON = 1.0
"""Seconds after which a caller that was shed here may try again; a throttle doubles what it lets through in a few of them."""


class Throttling:
    """Watches the calls of one method."""

    def __init__(self, method: str) -> None:
        self.method = method
        self._throttles: dict[tuple[str, str], Throttle] = {}
        """By tenant and kind, where something was shed lately."""
        self._calm: dict[tuple[str, str], Throttle] = {}
        """Where nothing was: what they would begin with."""
        self._calm_calls = 0

    def admit(self, context: DeadlineContext, kind: str) -> Watch | None:
        """Take note of a call that is about to be made. Raises Shed if it should not be.

        Returns what is to be told how it fares; None if nobody needs to know.
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
        """A watched call was accepted, and so many are taken to have been."""
        throttle = self._throttles.get(key) or self._calm.get(key)
        if throttle is None:
            if len(self._calm) >= MOST_KNOWN:
                self._calm.clear()  # it was half a second's knowledge
            throttle = self._calm[key] = Throttle(now)
        throttle.accepted(now, calls)

    def shed(self, key: tuple[str, str], now: float, calls: int) -> None:
        """A watched call was shed, and so many are taken to have been; but of a caller that nothing is known of, one."""
        throttle = self._throttles.get(key)
        if throttle is None:
            self._throttles = {one: other for one, other in self._throttles.items() if not other.calm(now)}
            throttle = self._calm.pop(key, None)
            if throttle is None:
                throttle, calls = Throttle(now), 1
            self._throttles[key] = throttle
        throttle.shed(now, calls)


class Watch:
    """Tells a `Throttling` whether one call was accepted: by its first response, or its end."""

    def __init__(self, throttling: Throttling, key: tuple[str, str], clock: Clock, stands_for: int = 1) -> None:
        self._throttling = throttling
        self._key = key
        self._clock = clock
        self._stands_for = stands_for
        self._over = False

    def answered(self) -> None:
        """A response has come."""
        if not self._over:
            self._over = True
            self._throttling.accepted(self._key, self._clock.monotonic(), self._stands_for)

    def ended(self, call: grpc.aio.Call) -> None:
        """The call has ended."""
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
        """The call was shed."""
        self._over = True
        self._throttling.shed(self._key, self._clock.monotonic(), self._stands_for)
