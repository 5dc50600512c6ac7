"""Local throttling: calls that would be shed over there are shed here, before anything is sent.

One method's calls are judged tenant by tenant, so that a tenant that is refused for what it does itself holds nobody back. While
none of a tenant's calls is shed, only one in WATCH_ONE_IN is looked at: it costs the others nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import grpc

from deadlinemesh.admission import Throttle
from deadlinemesh.deadline import DeadlineContext
from deadlinemesh.errors import Shed
from deadlinemesh.transport.ended import code_of_ended, error_of_ended

__all__ = ["Throttling"]

WATCH_ONE_IN = 8
"""Of the calls of a tenant that nothing of was shed lately."""

_SOON = 1.0
"""Seconds after which a caller that was refused here may try again; a throttle doubles what it lets through in a few of them."""


class Throttling:
    """Watches the calls of one method."""

    def __init__(self, method: str) -> None:
        self._method = method
        self._shed: dict[str, Throttle] = {}
        """The tenants of which something was shed lately."""
        self._calm_calls = 0

    def admit(self, context: DeadlineContext) -> Callable[[grpc.aio.Call], None] | None:
        """Count a call that is about to be made. Raises Shed if it should not be.

        Returns what is to be called when it has ended; None if nobody needs to know.
        """
        tenant_id = context.tenant_id
        throttle = self._shed.get(tenant_id)
        if throttle is None:
            self._calm_calls += 1
            if self._calm_calls % WATCH_ONE_IN:
                return None
            return lambda call: self._ended_in_calm(call, context)
        if not throttle.attempt(context.clock.monotonic()):
            raise Shed(
                f"{self._method} has shed most of this tenant's calls lately, so this one was not even sent",
                retry_after=_SOON,
                phase="throttle",
            )
        if throttle.calm:
            del self._shed[tenant_id]
        return lambda call: throttle.shed(context.clock.monotonic()) if _was_shed(call, self._method) else None

    def _ended_in_calm(self, call: grpc.aio.Call, context: DeadlineContext) -> None:
        # Where another call has ended the calm meanwhile, this one is not among the attempts that were counted.
        if context.tenant_id not in self._shed and _was_shed(call, self._method):
            now = context.clock.monotonic()
            throttle = self._shed[context.tenant_id] = Throttle(now)
            throttle.attempt(now)
            throttle.shed(now)


def _was_shed(call: grpc.aio.Call, method: str) -> bool:
    return code_of_ended(call) is grpc.StatusCode.RESOURCE_EXHAUSTED and isinstance(error_of_ended(call, method), Shed)
