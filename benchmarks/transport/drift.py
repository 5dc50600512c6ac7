"""How far a deadline moves over six hops: exact microseconds beside `grpc-timeout`, against `timeout=context.time_remaining()`.

All processes share the machine's monotonic clock, so the deadline that each hop holds can be compared with the edge's directly.
"""

from __future__ import annotations

import json
import random
import time
from contextlib import AsyncExitStack
from typing import Any

import grpc

from benchmarks.process import started
from benchmarks.report import Options, Result, bar, result, spread
from benchmarks.transport.relay import SERVICE, TOKEN
from deadlinemesh.deadline import DeadlineContext, entered
from deadlinemesh.transport import MeshChannel

__all__ = ["drift"]

HOPS = 6


async def drift(options: Options) -> Result:
    """Send seeded budgets from 5 to 60 s down a chain of six processes, each once by mesh and once plainly."""
    count = options.repetitions or 200
    draw = random.Random(options.seed)
    budgets = [draw.uniform(5, 60) for _ in range(count)]
    async with AsyncExitStack() as stack:
        last: list[str] = []
        for _ in range(HOPS):
            ports = await stack.enter_async_context(started("benchmarks.transport.relay", *last))
            last = [f"--next-plain={ports['plain']}", f"--next-mesh={ports['mesh']}"]
        plain = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{ports['plain']}"))
        raw = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{ports['mesh']}"))
        mesh = MeshChannel(raw, TOKEN)
        await _plain_drift(plain, 60.0)  # open every connection of both chains before anything is measured
        await _mesh_drift(mesh, 60.0)
        moved: dict[str, list[float]] = {"mesh": [], "plain": []}
        for budget in budgets:
            moved["mesh"] += await _mesh_drift(mesh, budget)
            moved["plain"] += await _plain_drift(plain, budget)
    figures = {kind: spread([max(0.0, ms) for ms in all_ms]) for kind, all_ms in moved.items()}
    for kind, all_ms in moved.items():
        figures[kind]["earliest_ms"] = round(min(all_ms), 3)
    bars = [
        bar("mesh: p99 of the drift at the sixth hop, ms", figures["mesh"]["p99_ms"], 5.0),
        bar("mesh: never earlier than the edge by more than, ms", -figures["mesh"]["earliest_ms"], 1.0),
    ]
    return result("drift", count, figures, bars)


async def _mesh_drift(channel: MeshChannel, budget: float) -> list[float]:
    now = time.monotonic()
    context = DeadlineContext("bench", now + budget, "enterprise", f"{1:032x}", "run", now)
    with entered(context):
        held = json.loads(await channel.unary_unary(f"/{SERVICE}/Relay")(b"{}"))
    return _moved(held, context.absolute_deadline)


async def _plain_drift(channel: grpc.aio.Channel, budget: float) -> list[float]:
    edge = time.monotonic() + budget
    relay: Any = channel.unary_unary(f"/{SERVICE}/Relay")
    return _moved(json.loads(await relay(b"{}", timeout=budget)), edge)


def _moved(held: list[float], edge: float) -> list[float]:
    if len(held) != HOPS:
        raise RuntimeError(f"the call crossed {len(held)} hops instead of {HOPS}")
    return [(held[-1] - edge) * 1000]
