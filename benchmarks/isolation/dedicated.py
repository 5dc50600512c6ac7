"""A dedicated tenant while the event loops of the shared pool spin: what it keeps of the answers that it has alone.

A whole mesh, as `dmesh up` starts it. The victim runs short agents in an open loop, at the same instants each time: alone, and then
while the shared orchestrator and the shared tool-runner do nothing but burn the CPU. A neighbour in the shared pool runs beside it
then, to show that the spinning is real.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.isolation.paced import paced
from benchmarks.process import started
from deadlinemesh.client import DeadlineMesh
from deadlinemesh.errors import MeshError
from deadlinemesh.identity.keys import hash_key, new_key
from deadlinemesh.v1 import orchestrator_pb2

__all__ = ["kept_by_the_dedicated"]

_HERE = Path(__file__).resolve().parent.parent

VICTIM, NEIGHBOUR = "victim", "neighbour"
RUNS_PER_S = 8.0
DEADLINE = 2.0
MEASURED = 12.0
"""Seconds of runs that count."""


async def kept_by_the_dedicated(seed: str) -> dict[str, float]:
    """One round: the parts of their goodput that the victim and the neighbour keep, and the victim's p99 alone and beside."""
    with tempfile.TemporaryDirectory() as folder:
        spinning = Path(folder) / "spinning"
        async with _mesh(Path(folder), spinning) as state:
            victim, neighbour = (_to(state, tenant) for tenant in (VICTIM, NEIGHBOUR))
            async with victim, neighbour:
                alone = await _runs(victim, random.Random(seed))
                spinning.touch()
                for process in ("orchestrator", "tool-runner"):
                    os.kill(state["processes"][process], signal.SIGUSR1)
                try:
                    beside, other = await asyncio.gather(
                        _runs(victim, random.Random(seed)), _runs(neighbour, random.Random(seed))
                    )
                finally:
                    spinning.unlink()
    return {
        "goodput_kept": beside[0] / alone[0],
        "goodput_kept_by_the_neighbour": other[0] / alone[0],
        "alone_p99_ms": alone[1] * 1000,
        "beside_p99_ms": beside[1] * 1000,
    }


async def _runs(mesh: DeadlineMesh, draw: random.Random) -> tuple[float, float]:
    async def call() -> bool:
        try:
            finished = await mesh.answer("Calculate 6 * 7", deadline=DEADLINE)
        except MeshError:
            return False
        return finished.outcome == orchestrator_pb2.OUTCOME_COMPLETED and not finished.partial

    return await paced(call, draw, per_s=RUNS_PER_S, deadline=DEADLINE, measured=MEASURED)


@asynccontextmanager
async def _mesh(folder: Path, spinning: Path) -> AsyncIterator[dict[str, Any]]:
    policy = folder / "policy.yaml"
    policy.write_text(_policy())
    environment = {
        "DMESH_STATE_FILE": str(folder / "up.json"),
        "DMESH_DRAIN_SECONDS": "0",
        "DMESH_LOG_LEVEL": "ERROR",
        "PYTHONPATH": os.pathsep.join(str(_HERE / folder) for folder in ("spinning", "../services")),
        "SPIN_WHILE": str(spinning),
    }
    arguments = ("up", "--json", "--port", "0", "--no-demo-world", "--policy", str(policy))
    async with started("deadlinemesh.cli", *arguments, environment=environment) as state:
        yield state


def _to(state: dict[str, Any], tenant: str) -> DeadlineMesh:
    return DeadlineMesh(state["address"], api_key=state["tenants"][tenant]["api_key"])


def _policy() -> str:
    def tenant(name: str, dedicated: bool) -> dict[str, Any]:
        return {"tier": "professional", "api_keys": [hash_key(new_key(name))], "dedicated": dedicated}

    model = {"provider": "scripted", "first_token": 0.1, "per_token": 0.002, "jitter": 0}
    policy = {
        "tiers": {"professional": {"run_budget": "120s", "iterations": 5}},
        "tenants": {VICTIM: tenant(VICTIM, True), NEIGHBOUR: tenant(NEIGHBOUR, False)},
        "models": {"quick": model},
    }
    return json.dumps(policy)  # JSON is YAML
