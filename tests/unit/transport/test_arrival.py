"""A call's time counts from its arrival, not from the moment in which it is taken up."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from tests.support.rpc import handler
from tests.support.virtual import in_virtual_time, now

from deadlinemesh.errors import Unauthenticated
from deadlinemesh.testing import virtual_time
from deadlinemesh.transport import Admitted, Arrival, DeadlineInterceptor
from deadlinemesh.transport.inbound import _ARRIVED, _Method


class Context:
    """grpc.aio's, of a call with one second left."""

    def time_remaining(self) -> float:
        return 1.0

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def done(self) -> bool:
        return False

    async def abort_with_status(self, status: object) -> None:
        raise grpc.aio.AbortError("Locally aborted.")


@in_virtual_time
async def test_waiting_for_its_turn_is_taken_from_a_calls_time() -> None:
    arrivals: list[Arrival] = []

    def gate(arrival: Arrival) -> Admitted:
        arrivals.append(arrival)
        raise Unauthenticated("nobody")

    interceptor = DeadlineInterceptor("hop", gate, clock=virtual_time.clock())
    method = _Method(interceptor, "/x/Y", handler("unary_unary", lambda request, context: None))
    arrived_at = now()
    _ARRIVED.set(((), (None, "", None), arrived_at))
    await asyncio.sleep(0.5)
    context: Any = Context()
    await method.serve(None, context)
    assert arrivals[0].at == arrived_at
    assert arrivals[0].native_remaining == pytest.approx(1.5)
