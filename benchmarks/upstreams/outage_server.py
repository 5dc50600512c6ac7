"""An upstream that is down: it answers 503 after a while, and every tenth request not at all. It keeps a record of each.

GET /stats gives the records since the last time, and how many requests are still open.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import Any

__all__: list[str] = []

SERVICE_S = 0.02
HANGS_EVERY = 10


class Outage:
    """The server's state."""

    def __init__(self, hangs_every: int) -> None:
        self._hangs_every = hangs_every
        self._records: list[dict[str, Any]] = []
        self._requests = 0
        self._open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                await self._answer(head, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if head.startswith("GET /stats"):
            told = json.dumps({"records": self._records, "open": self._open})
            self._records = []
            await _write(writer, "200 OK", told)
            return
        headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        self._requests += 1
        self._open += 1
        remaining = headers.get("x-request-timeout-ms")
        self._records.append({"at": time.monotonic(), "remaining_ms": None if remaining is None else float(remaining)})
        try:
            if self._hangs_every and self._requests % self._hangs_every == 0:
                await reader.read()  # until the caller leaves
                raise ConnectionError("the caller left")
            await asyncio.sleep(SERVICE_S)
            await _write(writer, "503 Service Unavailable", "down")
        finally:
            self._open -= 1


async def _write(writer: asyncio.StreamWriter, status: str, body: str) -> None:
    writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
    await writer.drain()


async def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--hangs-every", type=int, default=HANGS_EVERY, help="1: a black hole")
    outage = Outage(parser.parse_args().hangs_every)
    server = await asyncio.start_server(outage.serve, "127.0.0.1", 0, backlog=1024)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
