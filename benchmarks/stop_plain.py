"""The plain side of the stop benchmark: a chain of three grpc.aio processes that pass `timeout=context.time_remaining()`."""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

import grpc

from benchmarks.process import started
from benchmarks.stop_client import RAMP, HeldCalls, SilentRelay, events_of
from benchmarks.stop_mesh import KEEPALIVE

__all__ = ["PlainUnderTest"]

SERVICE = "benchmark.Chain"
LENGTH = 3


class PlainUnderTest:
    """A fresh chain for one scenario."""

    def __init__(self, runs: int) -> None:
        self._runs = runs
        self._stack = AsyncExitStack()
        self._due: dict[int, float] = {}
        self._files: list[Path] = []

    async def __aenter__(self) -> Self:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self._port = 0
        for position in reversed(range(LENGTH)):
            self._files.append(folder / f"hop{position + 1}.events")
            arguments = ["--events", str(self._files[-1]), "--next", str(self._port)]
            ready = started("benchmarks.stop_plain", *arguments)
            self._port = (await self._stack.enter_async_context(ready))["port"]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def deadlines_spread(self) -> None:
        """Deadlines evenly over one second."""
        first = time.monotonic() + 3 + self._runs * RAMP
        await self._run_to_deadline([first + number / self._runs for number in range(self._runs)])

    async def deadlines_at_once(self) -> None:
        """One deadline for all."""
        await self._run_to_deadline([time.monotonic() + 3 + self._runs * RAMP] * self._runs)

    async def cancelled(self) -> None:
        """Every client cancels at once."""
        async with self._channel(self._port) as channel:
            held = self._held([channel])
            await held.begin(None)
            self._due = held.cancel()
            await held.end()

    async def broken(self) -> None:
        """Every client has a connection of its own, and the network goes silent under all of them."""
        relay = SilentRelay(self._port)
        port = await relay.listen()
        channels = [self._channel(port) for _ in range(self._runs)]
        held = self._held(channels)
        await held.begin(None)
        due = relay.fall_silent() + 2 * KEEPALIVE
        self._due = dict.fromkeys(range(self._runs), due)
        await self._all_ended(within=due + 10)
        held.cancel()
        await held.end()
        for channel in channels:
            await channel.close()
        await relay.close()

    async def lateness(self) -> tuple[dict[str, list[float]], int]:
        """As the mesh's: seconds late by hop, and how many handlers never ended."""
        await self._all_ended(within=time.monotonic() + 10)
        late, unfinished = {}, 0
        for path in sorted(self._files):
            events = events_of(path)
            ended = [event for event in events if event["event"] == "ended"]
            unfinished += len(events) - 2 * len(ended)
            late[path.stem] = [event["at"] - self._due[event["call"]] for event in ended]
        return late, unfinished

    async def _run_to_deadline(self, deadlines: list[float]) -> None:
        self._due = dict(enumerate(deadlines))
        async with self._channel(self._port) as channel:
            held = self._held([channel])
            await held.begin(deadlines)
            await held.end()

    def _channel(self, port: int) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)])

    def _held(self, channels: list[grpc.aio.Channel]) -> HeldCalls:
        methods = [channel.unary_stream(f"/{SERVICE}/Work") for channel in channels]

        def call(number: int, timeout: float | None) -> Any:
            return methods[number % len(methods)](str(number).encode(), timeout=timeout)

        return HeldCalls(self._runs, call, lambda number, response: bool(response == b"working"))

    async def _all_ended(self, within: float) -> None:
        while time.monotonic() < within:
            if all(2 * self._runs == len(events_of(path)) for path in self._files):
                return
            await asyncio.sleep(0.2)


async def main() -> None:
    """Serve one link of the chain: the last waits a minute, the others pass the call on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=Path, required=True)
    parser.add_argument("--next", type=int, required=True, help="port of the next link; 0 for the last")
    options = parser.parse_args()
    events = options.events.open("a", buffering=1)
    following = None
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
    handlers = {"Work": grpc.unary_stream_rpc_method_handler(work)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"port": port}), flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
