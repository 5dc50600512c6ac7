"""The mesh under attack, a plain grpc.aio server in its place, and the neighbour who calls them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc

from benchmarks.mesh import meshed
from benchmarks.process import started
from benchmarks.report import quantile
from benchmarks.stop.client import events_of
from deadlinemesh.v1 import orchestrator_pb2, orchestrator_pb2_grpc

__all__ = ["DRAIN_S", "FLUENT", "Neighbour", "World", "mesh_world", "plain_world", "rss_mb"]

DRAIN_S = 2
FLUENT = "fluent"
QUIET = {"GRPC_VERBOSITY": "NONE"}
"""Else the C core writes a line for each call whose headers are too large."""
DEADLINE = 2.0
"""Seconds that a call of the neighbour has; it takes a tenth of that."""
PER_S = 25.0


def policy() -> dict[str, Any]:
    """A model for the neighbour, and one that talks as fast as it is read."""
    scripted = {"provider": "scripted", "slots": 1000, "per_token": 0, "jitter": 0}
    return {
        "tiers": {"free": {"run_budget": "30s", "iterations": 3}},
        "models": {
            "neighbour": {**scripted, "first_token": "100ms"},
            FLUENT: {**scripted, "first_token": 0, "max_output_tokens": 100_000},
        },
    }


@dataclass(frozen=True, slots=True)
class World:
    """What is attacked."""

    port: int
    """Where strangers and tenants come in."""
    pids: Mapping[str, int]
    """Its processes, by service."""
    attacker_key: str
    neighbour: tuple[tuple[str, str], ...]
    """What authenticates the neighbour."""
    folder: Path

    def rss_mb(self) -> dict[str, float]:
        """Resident memory of each process."""
        return {service: rss_mb(pid) for service, pid in self.pids.items()}

    def lags(self) -> list[float]:
        """Seconds that an event loop stood still each time so far, those under 50 ms left out."""
        return [
            event["seconds"]
            for service in self.pids
            for event in events_of(self.folder / f"{service}.events")
            if event["event"] == "LoopLagged"
        ]


@asynccontextmanager
async def mesh_world() -> AsyncIterator[World]:
    """The three services."""
    environment = {"DMESH_DRAIN_SECONDS": str(DRAIN_S), "DMESH_LOG_LEVEL": "ERROR", **QUIET}
    async with meshed(policy(), ("neighbour", "attacker"), environment=environment) as mesh:
        ((_, attacker),) = mesh.metadata_of["attacker"]
        port = int(mesh.target.rpartition(":")[2])
        yield World(port, mesh.pids, attacker.removeprefix("Bearer "), mesh.metadata_of["neighbour"], mesh.folder)


@asynccontextmanager
async def plain_world() -> AsyncIterator[World]:
    """A plain grpc.aio server that takes as long as the mesh, and knows no tenants."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        events = folder / "plain.events"
        events.touch()
        arguments = ("--events", str(events), "--drain", str(DRAIN_S))
        async with started("benchmarks.hostile.plain", *arguments, environment=QUIET) as ready:
            yield World(ready["port"], {"plain": ready["pid"]}, "none", (), folder)


class Neighbour:
    """Calls PER_S times a second, however it fares, a run with one tool call each time."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._request = orchestrator_pb2.RunRequest(prompt="Calculate 2 * 21", model="neighbour", tools=["calculate"])

    async def calls(self, seconds: float) -> tuple[float, float]:
        """The share of the calls of so many seconds that was answered in time, and their p99 in seconds; no answer counts as
        DEADLINE."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self._world.port}", options=options) as channel:
            stub: Any = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
            calls, began = [], time.monotonic()
            for number in range(int(seconds * PER_S)):
                await asyncio.sleep(max(0.0, began + number / PER_S - time.monotonic()))
                calls.append(asyncio.ensure_future(self._timed(stub)))
            taken = await asyncio.gather(*calls)
        return sum(one < DEADLINE for one in taken) / len(taken), quantile(taken, 0.99)

    async def _timed(self, stub: Any) -> float:
        began, last = time.monotonic(), orchestrator_pb2.RunResponse()
        with suppress(grpc.aio.AioRpcError):
            async for event in stub.Run(self._request, timeout=DEADLINE, metadata=self._world.neighbour):
                last = event
        finished = last.finished
        good = finished.outcome == orchestrator_pb2.OUTCOME_COMPLETED and not finished.partial
        return time.monotonic() - began if good else DEADLINE


def rss_mb(pid: int) -> float:
    """Resident memory of a process; 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024 if "VmRSS:" in status else 0.0
