"""The upstreams of the modes benchmark, in a process of their own: quick for tenant A, and in each mode bad for tenant B.

GET /MODE/KEY is a tool, POST /v1/chat/completions a model. Every request is written down with the instants of its beginning and its
end; a caller that leaves ends it. GET /records tells them.

    pool        B's answer takes a second
    fan_out     B's answer takes four
    background  B's answer is quick: it is the store that is slow for it
    retries     at most CAPACITY requests at once, first come first served; B's fail after 0.4 s
    model       B's turn thinks for eight seconds, aloud
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import time
from typing import Any

__all__ = ["CAPACITY", "UPSTREAMS"]

UPSTREAMS = ("pool", "fan_out", "background", "retries", "model")
CAPACITY = 8
QUICK_S = 0.05
SLOW_S = {"pool": 1.0, "fan_out": 4.0, "retries": 0.4}
QUICK_TOKENS, QUICK_TOKEN_S = 12, 0.004
SLOW_TOKENS, SLOW_TOKEN_S = 160, 0.05


class World:
    """The upstreams' state."""

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self._records: list[dict[str, Any]] = []
        self._capacity = asyncio.Semaphore(CAPACITY)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        ahead = b""
        try:
            while True:
                head = (ahead + await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
                body = await reader.readexactly(int(length[1])) if length else b""
                ahead = await self._until_left(head.split()[1], body, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _until_left(
        self, path: str, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bytes:
        """Answer, unless the caller leaves before. The first byte of what comes next, if it has come."""
        answer = asyncio.ensure_future(self._answer(path, body, writer))
        following = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({answer, following}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise ConnectionError("the caller left")
            answer.result()
            return following.result() if following.done() else b""
        finally:
            for task in (answer, following):
                task.cancel()
            await asyncio.wait({answer, following})

    async def _answer(self, path: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        if path == "/records":
            await _write(writer, "200 OK", json.dumps({"now": time.monotonic(), "records": self._records}))
            return
        if path.startswith("/v1/"):
            asked = [one["content"] for one in json.loads(body)["messages"] if one["role"] == "user"]
            key = re.findall(r"\b[AB][A-Z]{4}\b", asked[-1])[0]
            mode = "model"
        else:
            _, mode, key = path.split("/")
        record: dict[str, Any] = {"mode": mode, "key": key, "began": time.monotonic(), "queued": 0.0, "ended": None}
        self._records.append(record)
        try:
            if mode == "model":
                await self._speak(key, writer)
            elif mode == "retries":
                async with self._capacity:
                    record["queued"] = time.monotonic() - record["began"]
                    await self._tell(mode, key, writer)
            else:
                await self._tell(mode, key, writer)
        finally:
            record["ended"] = time.monotonic()

    async def _tell(self, mode: str, key: str, writer: asyncio.StreamWriter) -> None:
        misbehaves = key[0] == "B"
        draw = random.Random(f"{self._seed} {mode} {key}")
        await asyncio.sleep((SLOW_S.get(mode, QUICK_S) if misbehaves else QUICK_S) * draw.lognormvariate(0.0, 0.1))
        status = "503 Service Unavailable" if misbehaves and mode == "retries" else "200 OK"
        await _write(writer, status, json.dumps({"key": key}))

    async def _speak(self, key: str, writer: asyncio.StreamWriter) -> None:
        thinks = key[0] == "B"
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        for _ in range(SLOW_TOKENS if thinks else QUICK_TOKENS):
            await asyncio.sleep(SLOW_TOKEN_S if thinks else QUICK_TOKEN_S)
            writer.write(_chunk({"content": "so "}, None))
            await writer.drain()
        writer.write(_chunk({}, "stop") + b"data: [DONE]\n\n")
        await writer.drain()
        writer.close()


def _chunk(delta: dict[str, str], reason: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "x", "choices": [choice]}
    return f"data: {json.dumps(chunk)}\n\n".encode()


async def _write(writer: asyncio.StreamWriter, status: str, body: str) -> None:
    writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
    await writer.drain()


async def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", default="1")
    world = World(parser.parse_args().seed)
    # A port for each, so that clients with a pool for each host have one for each mode.
    servers = {mode: await asyncio.start_server(world.serve, "127.0.0.1", 0, backlog=1024) for mode in UPSTREAMS}
    ports = {mode: server.sockets[0].getsockname()[1] for mode, server in servers.items()}
    print(json.dumps({"ports": ports}), flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers.values()))


if __name__ == "__main__":
    asyncio.run(main())
