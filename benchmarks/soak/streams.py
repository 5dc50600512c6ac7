"""The streams of the soak: how each is begun, and how it ends before it is done."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from typing import Any

import grpc

from benchmarks.mesh import Mesh
from deadlinemesh.v1 import common_pb2, orchestrator_pb2, orchestrator_pb2_grpc

__all__ = ["KINDS", "TENANTS", "Streams", "policy"]

TENANTS = ("one", "two", "three")
KINDS = ("cancelled", "expired", "cancelled", "expired", "broken")
"""How streams end, in turn."""
EXPIRES_S = 0.8
LEFT_S = 60.0
"""What a stream has that does not expire."""
AT_ONCE = 80
PER_BREAK = 12
"""Streams on one connection that breaks."""

MODEL = orchestrator_pb2.RunRequest(prompt="Tell me a long story about deadlines", model="talks", tools=["long_task"])
TOOL = orchestrator_pb2.RunRequest(prompt="Run the long task for 60 seconds", model="quick", tools=["long_task"])


def policy() -> dict[str, Any]:
    """A model that talks on, and one that asks for a tool at once."""
    return {
        "tiers": {"free": {"run_budget": "300s", "iterations": 3, "tool_retries": 0}},
        "models": {
            "talks": {"provider": "scripted", "slots": 1000, "first_token": 0, "per_token": "500ms", "jitter": 0},
            "quick": {"provider": "scripted", "slots": 1000, "first_token": 0, "per_token": 0},
        },
        # Where many answers are on their way, much is set aside for them; what is left is still a stream to be ended.
        "limits": {"shortest_run": "20ms"},
    }


class Streams:
    """Opens streams to a mesh and counts how they ended."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._number = 0
        self.ended: Counter[str] = Counter()

    async def play(self, count: int) -> None:
        """`count` more streams, AT_ONCE at a time."""
        async with grpc.aio.insecure_channel(self._mesh.target) as channel:
            self._stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
            left = iter(range(self._number, self._number + count))
            self._number += count
            await asyncio.gather(*(self._one_after_the_other(left) for _ in range(AT_ONCE)))

    async def _one_after_the_other(self, numbers: Any) -> None:
        for number in numbers:
            match KINDS[number % len(KINDS)]:
                case "cancelled":
                    self.ended[await self._cancelled(number)] += 1
                case "expired":
                    self.ended[await self._expired(number)] += 1
                case "broken":
                    # As many as one connection carries, for as many numbers of this kind.
                    if number // len(KINDS) % PER_BREAK == 0:
                        self.ended.update(await self._broken(number))

    def _call(self, stub: Any, number: int, timeout: float) -> Any:
        tenant = TENANTS[number % len(TENANTS)]
        return stub.Run(TOOL if number % 2 else MODEL, timeout=timeout, metadata=self._mesh.metadata_of[tenant])

    async def _cancelled(self, number: int) -> str:
        call = self._call(self._stub, number, LEFT_S)
        try:
            if not await _at_work(call):
                return "unexpected"
        finally:
            call.cancel()
        return "cancelled"

    async def _expired(self, number: int) -> str:
        with suppress(grpc.aio.AioRpcError):
            async for event in self._call(self._stub, number, EXPIRES_S):
                if event.HasField("finished"):
                    spent = event.finished.outcome == orchestrator_pb2.OUTCOME_DEADLINE_SPENT
                    wrapped_up = event.finished.partial  # no tool was begun any more, as time was nearly up
                    return "expired" if spent else "wrapped up" if wrapped_up else "unexpected"
        return "unexpected"

    async def _broken(self, number: int) -> list[str]:
        relay = _Relay(self._mesh.target)
        target = await relay.listen()
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        async with grpc.aio.insecure_channel(target, options=options) as channel:
            stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
            calls = [self._call(stub, number + place, LEFT_S) for place in range(PER_BREAK)]
            working = await asyncio.gather(*(_at_work(call) for call in calls))
            await relay.break_off()
            for call in calls:
                with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
                    async for _ in call:
                        pass
        return ["broken" if one else "unexpected" for one in working]


async def _at_work(call: Any) -> bool:
    """Whether the stream has come to where its model talks, or its tool runs."""
    with suppress(grpc.aio.AioRpcError):
        async for event in call:
            if event.HasField("text") or event.phase_changed.phase == common_pb2.PHASE_TOOL_CALL:
                return True
    return False


class _Relay:
    """A TCP relay whose connection can be broken off: both ends are reset."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._host, self._port = host, int(port)
        self._writers: list[asyncio.StreamWriter] = []
        self._pumps: set[asyncio.Future[Any]] = set()

    async def listen(self) -> str:
        """Start; where."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def break_off(self) -> None:
        """Reset what is open, and accept nothing any more."""
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        if self._pumps:
            await asyncio.wait(self._pumps)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, onward = await asyncio.open_connection(self._host, self._port)
        self._writers += (writer, onward)
        self._pumps |= {asyncio.ensure_future(_pump(reader, onward)), asyncio.ensure_future(_pump(there, writer))}


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError, RuntimeError):
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
