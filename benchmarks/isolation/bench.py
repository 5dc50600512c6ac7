"""A tenant beside an aggressor: what it keeps of the answers, and of the speed, that it has alone.

Each pool has SLOTS slots. The victim calls at half of its fair share of them, the aggressor at a hundred times its own, both in an
open loop. The pools are those of the real services, each in a process of its own: model slots at the llm-proxy, HTTP connections at
the tool-runner, and the processes in which its blocking tools run. Beside them, a plain grpc.aio server whose slots are a
semaphore. Last a whole mesh in which the victim is dedicated, while the event loops of the shared pool spin: see dedicated.py.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.isolation.dedicated import kept_by_the_dedicated
from benchmarks.isolation.paced import paced
from benchmarks.isolation.peers import DEADLINE, SERVICE_S, SLOTS, TOKEN, Call, calls_to
from benchmarks.process import started
from benchmarks.report import Options, Result, bar, median, result
from deadlinemesh.identity.keys import hash_key, new_key

__all__ = ["isolation"]

POOLS = {"model slots": "llm-proxy", "http connections": "tool-runner", "worker processes": "tool-runner"}
FAIR_PER_S = SLOTS / 2 / SERVICE_S
VICTIM_PER_S = FAIR_PER_S / 2
AGGRESSOR_PER_S = FAIR_PER_S * 100
MEASURED = 8.0
"""Seconds of the victim's calls that count."""


async def isolation(options: Options) -> Result:
    """Measure each pool, the plain one, and a dedicated tenant, with the victim alone and then beside the aggressor."""
    rounds = options.repetitions or 5
    found: dict[str, list[dict[str, float]]] = {pool: [] for pool in (*POOLS, "plain")}
    for number in range(rounds):
        for pool, measured in found.items():
            async with _server(pool) as port:
                measured.append(await _compare(pool, port, f"{options.seed} {number} {pool}"))
    figures = {pool: _figures(measured) for pool, measured in found.items()}
    bars = []
    for pool in POOLS:
        bars.append(bar(f"{pool}: goodput kept", figures[pool]["goodput_kept"], 0.95, at_least=True))
        bars.append(bar(f"{pool}: p99 over that alone", figures[pool]["p99_ratio"], 2.0))
    dedicated = _figures([await kept_by_the_dedicated(f"{options.seed} {number}") for number in range(rounds)])
    bars.append(bar("dedicated: goodput kept", dedicated["goodput_kept"], 0.99, at_least=True))
    return result("isolation", rounds, {"pools": figures, "dedicated": dedicated}, bars)


def _figures(rounds: list[dict[str, float]]) -> dict[str, Any]:
    figures: dict[str, Any] = {name: round(median([one[name] for one in rounds]), 3) for name in rounds[0]}
    kept = [one["goodput_kept"] for one in rounds]
    return {**figures, "goodput_kept_spread": [round(min(kept), 3), round(max(kept), 3)]}


async def _compare(pool: str, port: int, seed: str) -> dict[str, float]:
    channel, call = calls_to(pool, port, "victim")
    async with channel:
        alone = await _victim(call, random.Random(seed))
        flood = started(
            "benchmarks.isolation.peers",
            *("flood", "--pool", pool, "--port", str(port), "--per-s", str(AGGRESSOR_PER_S)),
            *("--seed", str(random.Random(seed).getrandbits(32))),
        )
        async with flood:
            beside = await _victim(call, random.Random(seed))
    return {
        "goodput_kept": beside[0] / alone[0],
        "p99_ratio": beside[1] / alone[1],
        "alone_p99_ms": alone[1] * 1000,
        "beside_p99_ms": beside[1] * 1000,
    }


async def _victim(call: Call, draw: random.Random) -> tuple[float, float]:
    return await paced(call, draw, per_s=VICTIM_PER_S, deadline=DEADLINE, measured=MEASURED)


@asynccontextmanager
async def _server(pool: str) -> AsyncIterator[int]:
    async with AsyncExitStack() as stack:
        if pool == "plain":
            yield (await stack.enter_async_context(started("benchmarks.isolation.peers", "plain")))["port"]
            return
        upstream = await stack.enter_async_context(started("benchmarks.isolation.peers", "upstream"))
        policy = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "policy.yaml"
        policy.write_text(_policy(upstream["port"]))
        environment = {
            "DMESH_LISTEN": "127.0.0.1:0",
            "DMESH_POLICY_FILE": str(policy),
            "DMESH_MESH_TOKEN": TOKEN,
            "DMESH_DRAIN_SECONDS": "0",
            "DMESH_LOG_LEVEL": "ERROR",
        }
        ready = started("deadlinemesh.cli", "serve", POOLS[pool], "--announce", environment=environment)
        yield (await stack.enter_async_context(ready))["port"]


def _policy(upstream: int) -> str:
    tenants = {
        name: {"tier": "professional", "api_keys": [hash_key(new_key(name))]} for name in ("victim", "aggressor")
    }
    model = {"provider": "scripted", "slots": SLOTS, "first_token": SERVICE_S, "per_token": 0, "jitter": 0}
    tool = {"url": f"http://127.0.0.1:{upstream}/", "description": "Waits, and says ok.", "idempotent": True}
    policy = {
        "tiers": {"professional": {"run_budget": "120s", "iterations": 5}},
        "tenants": tenants,
        "models": {"slow": model},
        "tools": {
            "modules": ["benchmarks.blocking_tool"],
            "http": {"upstream": tool},
            "connections_per_host": SLOTS,
            "workers": SLOTS,
        },
    }
    return json.dumps(policy)  # JSON is YAML
