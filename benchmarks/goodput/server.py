"""A process whose one method costs CPU: behind the mesh's transport and admission, or plain grpc.aio.

What it did is asked for over the wire: how many calls it executed, and how many of those had no time left when they began.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import grpc

from benchmarks.process import run_as_service
from deadlinemesh.admission import Bulkhead
from deadlinemesh.deadline import current
from deadlinemesh.hosting.interpreter import spare_the_event_loop
from deadlinemesh.transport import DeadlineInterceptor, MeshGate, MeshServer, ServerSettings

__all__ = ["SERVICE", "TOKEN"]

SERVICE, TOKEN = "benchmark.Work", "benchmark"


def spin(seconds: float) -> None:
    """Use so much CPU, as a handler does that parses, renders or encrypts: on the event loop."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


class Work:
    """Executes calls, and counts."""

    def __init__(self, cpu_seconds: float) -> None:
        self._cpu_seconds = cpu_seconds
        self._executed = self._expired = 0

    def execute(self, remaining: float | None) -> bytes:
        self._executed += 1
        self._expired += remaining is not None and remaining <= 0
        spin(self._cpu_seconds)
        return b"done"

    async def stats(self, request: bytes, context: Any) -> bytes:
        told = {"executed": self._executed, "expired_starts": self._expired}
        self._executed = self._expired = 0
        return json.dumps(told).encode()


def _plain(work: Work) -> Callable[[bytes, Any], Any]:
    async def execute(request: bytes, context: Any) -> bytes:
        return work.execute(context.time_remaining())

    return execute


def _mesh(work: Work) -> Callable[[bytes, Any], Any]:
    # One at a time, as there is one event loop. Nothing else is said: what a call takes is learned.
    bulkhead = Bulkhead("work", 1)

    async def execute(request: bytes, context: Any) -> bytes:
        async with bulkhead.slot():
            deadline = current()
            return work.execute(deadline.absolute_deadline - deadline.clock.monotonic())

    return execute


async def _serve_mesh(work: Work) -> None:
    door = DeadlineInterceptor("work", MeshGate("work", TOKEN))
    server = MeshServer(ServerSettings("127.0.0.1:0"), door, [(SERVICE, _registration(work, _mesh(work)))])
    port = await server.start()
    spare_the_event_loop()
    print(json.dumps({"port": port}), flush=True)
    await server.serve_until_signalled()


async def _serve_plain(work: Work) -> None:
    server = grpc.aio.server()
    _registration(work, _plain(work))(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"port": port}), flush=True)
    await server.wait_for_termination()


def _registration(work: Work, execute: Callable[[bytes, Any], Any]) -> Callable[[grpc.aio.Server], None]:
    handlers: dict[str, Any] = {
        "Execute": grpc.unary_unary_rpc_method_handler(execute),
        "Stats": grpc.unary_unary_rpc_method_handler(work.stats),
    }
    generic = grpc.method_handlers_generic_handler(SERVICE, handlers)
    return lambda server: server.add_generic_rpc_handlers((generic,))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=("mesh", "plain"))
    parser.add_argument("--cpu-ms", type=float, required=True)
    options = parser.parse_args()
    work = Work(options.cpu_ms / 1000)
    if options.peer == "mesh":
        run_as_service(_serve_mesh(work))
    else:
        asyncio.run(_serve_plain(work))


if __name__ == "__main__":
    main()
