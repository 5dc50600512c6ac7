"""The plain side of the soak: a grpc.aio process in the orchestrator's place that passes on what another one streams."""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from benchmarks.mesh import Mesh
from benchmarks.process import started
from benchmarks.soak.streams import TENANTS
from deadlinemesh.v1 import llm_proxy_pb2, llm_proxy_pb2_grpc, orchestrator_pb2, orchestrator_pb2_grpc

__all__ = ["plain"]

WORDS = 10
"""What a model says before it has its tool work."""


@asynccontextmanager
async def plain() -> AsyncIterator[Mesh]:
    """The two processes, as a mesh that asks nobody who calls."""
    async with AsyncExitStack() as stack:
        back = await stack.enter_async_context(started("benchmarks.soak.plain"))
        front = await stack.enter_async_context(started("benchmarks.soak.plain", "--next", str(back["port"])))
        pids = {"front": front["pid"], "back": back["pid"]}
        yield Mesh(f"127.0.0.1:{front['port']}", dict.fromkeys(TENANTS, ()), pids, Path())


class _Back(llm_proxy_pb2_grpc.LlmProxyServiceServicer):
    async def Generate(
        self, request: llm_proxy_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[llm_proxy_pb2.GenerateResponse]:
        word = llm_proxy_pb2.GenerateResponse(text=llm_proxy_pb2.TextDelta(text="word "))
        for _ in range(WORDS if request.model == "quick" else 1):
            yield word
        while True:
            await asyncio.sleep(60.0 if request.model == "quick" else 0.5)
            yield word


class _Front(orchestrator_pb2_grpc.OrchestratorServiceServicer):
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = llm_proxy_pb2_grpc.LlmProxyServiceStub(channel)

    async def Run(
        self, request: orchestrator_pb2.RunRequest, context: Any
    ) -> AsyncIterator[orchestrator_pb2.RunResponse]:
        asked = llm_proxy_pb2.GenerateRequest(model=request.model)
        async for response in self._stub.Generate(asked, timeout=context.time_remaining()):
            yield orchestrator_pb2.RunResponse(text=response.text)


async def main() -> None:
    """Serve one of the two: with a `--next`, the one in front."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--next", type=int, help="port of the one behind")
    options = parser.parse_args()
    sys.stderr = io.StringIO()  # grpc.aio prints a traceback for each status that nobody is there to read
    server = grpc.aio.server()
    if options.next is None:
        llm_proxy_pb2_grpc.add_LlmProxyServiceServicer_to_server(_Back(), server)  # type: ignore[abstract]  # the rest is not called
    else:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{options.next}")
        orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server(_Front(channel), server)  # type: ignore[abstract]  # the rest is not called
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"port": port}), flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
