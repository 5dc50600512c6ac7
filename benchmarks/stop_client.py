"""The clients of the stop benchmark: as many calls as runs, held until all are at work."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc

__all__ = ["HeldCalls", "SilentRelay", "events_of"]

RAMP = 0.03
"""Seconds that one run may take to get to work while all the others do."""


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

    def cancel(self) -> dict[int, float]:
        """Cancel every call; the instant for each."""
        instants = {}
        for number, call in enumerate(self.calls):
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


def events_of(path: Path) -> list[dict[str, Any]]:
    """The events that a service has written."""
    return [json.loads(line) for line in path.read_text().splitlines()]
