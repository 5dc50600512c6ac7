"""A `Health/Watch` that is refused gets its one status, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from deadlinemesh.deadline import SYSTEM_CLOCK
from deadlinemesh.transport.open_calls import OpenCalls, OpenMethod
from deadlinemesh.transport.peers import Peers
from deadlinemesh.transport.stragglers import Stragglers

WATCH = "/grpc.health.v1.Health/Watch"


class Context:
    """A call whose status takes a while to leave; a drain begins in the meantime."""

    def __init__(self, stragglers: Stragglers) -> None:
        self._stragglers = stragglers
        self.statuses: list[grpc.StatusCode] = []

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    async def read(self) -> bytes:
        return b""

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.statuses.append(code)
        self._stragglers.hurry()
        for _ in range(5):
            await asyncio.sleep(0)
        raise grpc.aio.AbortError

    async def abort_with_status(self, status: grpc.Status) -> None:
        self.statuses.append(status.code)


async def test_refused_watch_is_not_refused_again_by_a_drain() -> None:
    stragglers = Stragglers(SYSTEM_CLOCK, lambda _: None)
    calls = OpenCalls(stragglers, Peers(SYSTEM_CLOCK), SYSTEM_CLOCK, 15.0, 0)
    handler: Any = grpc.unary_stream_rpc_method_handler(lambda request, context: None)
    context = Context(stragglers)
    served = asyncio.create_task(OpenMethod(calls, WATCH, handler).serve(None, context))
    await asyncio.wait({served})
    assert isinstance(served.exception(), grpc.aio.AbortError)
    assert context.statuses == [grpc.StatusCode.UNIMPLEMENTED]
