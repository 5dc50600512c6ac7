"""A plain grpc.aio server in the orchestrator's place, as its documentation has one written: with health and a graceful end."""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from benchmarks.process import run_as_service
from deadlinemesh.v1 import llm_proxy_pb2, orchestrator_pb2, orchestrator_pb2_grpc

__all__: list[str] = []

SERVICE_S = 0.2
BEAT_S = 0.01
LAGS_AFTER_S = 0.05
"""As the services tell of a loop that stood still."""


class _Servicer(orchestrator_pb2_grpc.OrchestratorServiceServicer):
    async def Run(
        self, request: orchestrator_pb2.RunRequest, context: Any
    ) -> AsyncIterator[orchestrator_pb2.RunResponse]:
        if request.prompt.startswith("Write"):
            for _ in range(3000):
                yield orchestrator_pb2.RunResponse(text=llm_proxy_pb2.TextDelta(text="word "))
        else:
            await asyncio.sleep(SERVICE_S)
        finished = orchestrator_pb2.RunFinished(outcome=orchestrator_pb2.OUTCOME_COMPLETED)
        yield orchestrator_pb2.RunResponse(finished=finished)

    async def ListRuns(
        self, request: orchestrator_pb2.ListRunsRequest, context: Any
    ) -> orchestrator_pb2.ListRunsResponse:
        return orchestrator_pb2.ListRunsResponse()


async def _watch_lag(events: Path) -> None:
    with events.open("a") as lines:
        while True:
            due = time.monotonic() + BEAT_S
            await asyncio.sleep(BEAT_S)
            if (late := time.monotonic() - due) > LAGS_AFTER_S:
                lines.write(json.dumps({"event": "LoopLagged", "seconds": late}) + "\n")
                lines.flush()


async def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=Path, required=True)
    parser.add_argument("--drain", type=float, required=True)
    options = parser.parse_args()
    sys.stderr = io.StringIO()  # grpc.aio prints a traceback for each status that nobody is there to read
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 4 * 1024 * 1024)])
    orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server(_Servicer(), server)  # type: ignore[abstract]  # the rest is not called
    healthy = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await healthy.set("", health_pb2.HealthCheckResponse.SERVING)
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    watching = asyncio.ensure_future(_watch_lag(options.events))
    print(json.dumps({"port": port}), flush=True)
    await told.wait()
    await healthy.enter_graceful_shutdown()
    await server.stop(options.drain)
    watching.cancel()


if __name__ == "__main__":
    run_as_service(main())
