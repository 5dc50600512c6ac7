"""Starts a run for each JSON object that it reads, a line each, and prints how the run ended: the Python client of `exact`."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterable
from typing import Any

import grpc

from deadlinemesh.client import DeadlineMesh
from deadlinemesh.errors import MeshError
from deadlinemesh.v1 import orchestrator_pb2, orchestrator_pb2_grpc


async def main(address: str, key: str) -> None:
    """Serve orders from standard input to its end, and return when every run is over."""
    metadata = (("authorization", f"Bearer {key}"),)
    async with DeadlineMesh(address, api_key=key) as mesh, grpc.aio.insecure_channel(address) as channel:
        stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)

        def begin(order: dict[str, Any]) -> AsyncIterable[orchestrator_pb2.RunResponse]:
            seconds = order["deadline_ms"] / 1000
            if not order["plain"]:
                return mesh.run(order["prompt"], deadline=seconds)
            return stub.Run(orchestrator_pb2.RunRequest(prompt=order["prompt"]), timeout=seconds, metadata=metadata)

        # Connections are opened before any deadline runs.
        await mesh.list_runs()
        await stub.ListRuns(orchestrator_pb2.ListRunsRequest(), metadata=metadata)
        print(json.dumps({"ready": True}), flush=True)
        orders = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
        async with asyncio.TaskGroup() as runs:
            async for line in orders:
                order = json.loads(line)
                runs.create_task(_run(order, begin(order)))


async def _run(order: dict[str, Any], events: AsyncIterable[orchestrator_pb2.RunResponse]) -> None:
    ended: dict[str, Any] = {"id": order["id"], "held_us": 0, "left_us": 0, "outcome": "", "error": ""}
    asked_us, began_ns = order["deadline_ms"] * 1000, time.monotonic_ns()
    try:
        async for event in events:
            if event.HasField("started"):
                ended["held_us"] = asked_us - (event.started.grant.granted_us - event.started.grant.reserve_us)
            elif event.HasField("finished"):
                ended["left_us"] = asked_us - (time.monotonic_ns() - began_ns) // 1000
                ended["outcome"] = orchestrator_pb2.Outcome.Name(event.finished.outcome)
    except (MeshError, grpc.aio.AioRpcError) as error:
        ended["error"] = str(error)
    print(json.dumps(ended), flush=True)


if __name__ == "__main__":
    asyncio.run(main(os.environ["DMESH_ADDR"], os.environ["DMESH_API_KEY"]))
