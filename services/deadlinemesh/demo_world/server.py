"""Serves the world on a socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn

from deadlinemesh.demo_world.world import DemoWorld

__all__ = ["serving"]


class _Server(uvicorn.Server):
    """A uvicorn server without signal handlers and without polling. Its process has signal handlers
    of its own.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()
        self.stopping = asyncio.Event()

    async def main_loop(self) -> None:
        await self.on_tick(0)
        self.ready.set()
        await self.stopping.wait()


@asynccontextmanager
async def serving(world: DemoWorld, *, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Context manager. Serves `world` and gives its URL to the block. Calls still running at the
    block's end are stopped.

    Port 0 takes a free port. Raises OSError if the port is taken.
    """
    listener = socket.create_server((host, port), backlog=1024)
    server = _Server(uvicorn.Config(world.app, log_config=None, access_log=False, lifespan="on", ws="none"))
    task = asyncio.create_task(server._serve([listener]))
    ready = asyncio.create_task(server.ready.wait())
    try:
        await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        yield f"http://{host}:{listener.getsockname()[1]}"
    finally:
        ready.cancel()
        world.app.stop_all()
        server.stopping.set()
        await task
