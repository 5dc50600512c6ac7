"""What both sides of the stop benchmark share: the calls, the ways in which they end, and a network that falls silent."""

from __future__ import annotations

import asyncio
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc

__all__ = ["KEEPALIVE", "HeldCalls", "Scenarios", "events_of"]

RAMP = 0.03
"""Seconds that one run may take to get to work while all the others do."""

KEEPALIVE = 1.0
"""Seconds of silence before a server asks for a sign of life, and as many until it gives its peer up."""


class HeldCalls:
    """Makes `count` calls and waits until each is at work, as `at_work` tells from its number and a response."""

    def __init__(
        self, count: int, call: Callable[[int, float | None], Any], at_work: Callable[[int, Any], bool]
    ) -> None:
        self._count = count
        self._call = call
        self._at_work = at_work
        self.calls: list[Any] = []
        self._readers: list[asyncio.Task[None]] = []
        self._working: list[asyncio.Event] = []

    async def begin(self, deadlines: Sequence[float] | None) -> None:
        """Start all calls, each with its deadline, an instant, and return when all are at work."""
        for number in range(self._count):
            timeout = None if deadlines is None else deadlines[number] - time.monotonic()
            call = self._call(number, timeout)
            working = asyncio.Event()
            self.calls.append(call)
            self._working.append(working)
            self._readers.append(asyncio.create_task(self._read(number, working)))
            if number % 25 == 24:
                await self._working[number - 24].wait()  # no more than a few dozen at once get to work
        await asyncio.gather(*(working.wait() for working in self._working))
        if deadlines is not None and time.monotonic() > min(deadlines):
            raise RuntimeError("the machine is too slow to have all runs at work before the first deadline")

    async def end(self) -> None:
        """Return when every call has ended, however."""
        await asyncio.gather(*self._readers)

    async def cancel(self, within: float = 0.0) -> dict[int, float]:
        """Cancel every call, evenly over `within` seconds; the instant for each."""
        began, instants = time.monotonic(), {}
        for number, call in enumerate(self.calls):
            if within:
                await asyncio.sleep(began + within * number / self._count - time.monotonic())
            instants[number] = time.monotonic()
            call.cancel()
        return instants

    async def _read(self, number: int, working: asyncio.Event) -> None:
        try:
            async for response in self.calls[number]:
                if self._at_work(number, response):
                    working.set()
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            pass
        finally:
            working.set()


class SilentRelay:
    """A TCP relay that can fall silent: the sockets stay open and nothing passes any more, as when a cable is pulled."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._silent = False
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []

    async def listen(self) -> int:
        """Start; returns the port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def fall_silent(self) -> float:
        """Let nothing pass from now on; the instant."""
        self._silent = True
        return time.monotonic()

    async def close(self) -> None:
        """Close every socket."""
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers += (writer, upstream_writer)
        await asyncio.gather(self._pump(reader, upstream_writer), self._pump(upstream_reader, writer))

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                if self._silent:
                    continue
                target.write(data)
                await target.drain()
            if not self._silent:
                target.write_eof()
        except (ConnectionError, RuntimeError):
            pass


class Scenarios(ABC):
    """The ways in which `runs` calls to the server at `_port` end. Instants are kept by the call's number."""

    def __init__(self, runs: int) -> None:
        self._runs = runs
        self._port = 0
        self._stack = AsyncExitStack()
        self._deadlines: dict[int, float] = {}
        """When each client's own time was spent."""
        self._stopped: dict[int, float] = {}
        """When work should have ended for another reason than its deadline."""

    @abstractmethod
    def _held(self, channels: Sequence[grpc.aio.Channel]) -> HeldCalls:
        """The calls, dealt out to the channels."""

    @abstractmethod
    def _ended(self) -> bool:
        """Whether every handler has written down its end."""

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def deadlines_spread(self) -> None:
        """Deadlines evenly over one second."""
        first = time.monotonic() + 3 + self._runs * RAMP
        await self._run_to_deadline([first + number / self._runs for number in range(self._runs)])

    async def deadlines_at_once(self) -> None:
        """One deadline for all."""
        await self._run_to_deadline([time.monotonic() + 3 + self._runs * RAMP] * self._runs)

    async def cancels_spread(self) -> None:
        """The clients cancel one after the other, evenly over one second."""
        await self._cancelled(within=1.0)

    async def cancels_at_once(self) -> None:
        """Every client cancels at once."""
        await self._cancelled(within=0.0)

    async def broken(self) -> None:
        """Every client has a connection of its own, and the network goes silent under all of them."""
        relay = SilentRelay(self._port)
        port = await relay.listen()
        channels = [_channel(port) for _ in range(self._runs)]
        held = self._held(channels)
        await held.begin(None)
        due = relay.fall_silent() + 2 * KEEPALIVE
        self._stopped = dict.fromkeys(range(self._runs), due)
        await self._all_ended(within=due + 10)
        await held.cancel()
        await held.end()
        for channel in channels:
            await channel.close()
        await relay.close()

    async def _run_to_deadline(self, deadlines: list[float]) -> None:
        self._deadlines = dict(enumerate(deadlines))
        async with _channel(self._port) as channel:
            held = self._held([channel])
            await held.begin(deadlines)
            await held.end()

    async def _cancelled(self, within: float) -> None:
        async with _channel(self._port) as channel:
            held = self._held([channel])
            await held.begin(None)
            self._stopped = await held.cancel(within)
            await held.end()

    async def _all_ended(self, within: float) -> None:
        """Return when every handler has ended, or at the instant `within`."""
        while not self._ended() and time.monotonic() < within:  # noqa: ASYNC110  # the facts stand in other processes' files
            await asyncio.sleep(0.2)


def _channel(port: int) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)])


def events_of(path: Path) -> list[dict[str, Any]]:
    """The events that a service has written, but for one that it is just writing."""
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
