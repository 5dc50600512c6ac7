"""The plain side of the stop benchmark: a chain of three grpc.aio processes that pass `timeout=context.time_remaining()`."""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Self

import grpc

from benchmarks.process import started
from benchmarks.stop.client import KEEPALIVE, HeldCalls, Scenarios, events_of

__all__ = ["PlainUnderTest"]

SERVICE = "benchmark.Chain"
LENGTH = 3


class PlainUnderTest(Scenarios):
    """A fresh chain for one scenario."""

    def __init__(self, runs: int) -> None:
        super().__init__(runs)
        self._files: list[Path] = []

    async def __aenter__(self) -> Self:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self._port = 0
        for position in reversed(range(LENGTH)):
            self._files.append(folder / f"hop{position + 1}.events")
            arguments = ["--events", str(self._files[-1]), "--next", str(self._port)]
            ready = started("benchmarks.stop.plain", *arguments)
            self._port = (await self._stack.enter_async_context(ready))["port"]
        return self

    async def lateness(self) -> tuple[dict[str, list[float]], int]:
        """As the mesh's: seconds late by hop, and how many handlers never ended."""
        await self._all_ended(within=time.monotonic() + 10)
        due = self._stopped or self._deadlines
        late, unfinished = {}, 0
        for path in sorted(self._files):
            events = events_of(path)
            ended = [event for event in events if event["event"] == "ended"]
            unfinished += len(events) - 2 * len(ended)
            late[path.stem] = [event["at"] - due[event["call"]] for event in ended]
        return late, unfinished

    def _held(self, channels: Sequence[grpc.aio.Channel]) -> HeldCalls:
        methods: list[Any] = [channel.unary_stream(f"/{SERVICE}/Work") for channel in channels]

        def call(number: int, timeout: float | None) -> Any:
            return methods[number % len(methods)](str(number).encode(), timeout=timeout)

        return HeldCalls(self._runs, call, lambda number, response: bool(response == b"working"))

    def _ended(self) -> bool:
        return all(2 * self._runs == len(events_of(path)) for path in self._files)


async def main() -> None:
    """Serve one link of the chain: the last waits a minute, the others pass the call on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=Path, required=True)
    parser.add_argument("--next", type=int, required=True, help="port of the next link; 0 for the last")
    options = parser.parse_args()
    events = options.events.open("a", buffering=1)
    following: Any = None
    if options.next:
        following = grpc.aio.insecure_channel(f"127.0.0.1:{options.next}").unary_stream(f"/{SERVICE}/Work")

    def note(event: str, request: bytes) -> None:
        events.write(json.dumps({"event": event, "call": int(request), "at": time.monotonic()}) + "\n")

    async def work(request: bytes, context: Any) -> AsyncIterator[bytes]:
        note("started", request)
        try:
            if following is None:
                yield b"working"
                await asyncio.sleep(60)
            else:
                async for response in following(request, timeout=context.time_remaining()):
                    yield response
        finally:
            note("ended", request)

    keepalive = int(KEEPALIVE * 1000)
    server = grpc.aio.server(
        options=[
            ("grpc.keepalive_time_ms", keepalive),
            ("grpc.keepalive_timeout_ms", keepalive),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.http2.ping_timeout_ms", keepalive),
        ]
    )
    handlers: dict[str, Any] = {"Work": grpc.unary_stream_rpc_method_handler(work)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"port": port}), flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
