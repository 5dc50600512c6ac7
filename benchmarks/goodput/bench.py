"""Good answers under overload: calls that cost 5 ms of CPU, with deadlines of 100 ms, at up to five times what the server can do.

The load is an open loop: calls come at random instants, whether or not earlier ones were answered. An answer is good if it is
there before the caller's deadline. Capacity is what plain grpc.aio does in a closed loop that never overloads it, measured in the
same run; so each peer is judged by the work that this machine can do, with gRPC's own cost in it.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from benchmarks.goodput.server import SERVICE, TOKEN
from benchmarks.process import started
from benchmarks.report import Options, Result, bar, median, result
from deadlinemesh.deadline import DeadlineContext, entered
from deadlinemesh.errors import MeshError
from deadlinemesh.transport import mesh_channel

__all__ = ["goodput"]

CPU_MS = 5.0
DEADLINE = 0.1
LOADS = (0.5, 1.0, 2.0, 5.0)
WARM_UP, MEASURED = 1.0, 3.0
"""Seconds of load before the counting begins, and while it goes on."""
BARS = {2.0: 0.90, 5.0: 0.85}

Call = Callable[[], Awaitable[bool]]
"""One call; says whether its answer was good."""


@dataclass(frozen=True, slots=True)
class _Peer:
    call: Call
    stats: Callable[[], Awaitable[dict[str, int]]]


async def goodput(options: Options) -> Result:
    """Measure both peers at each load, in turn."""
    rounds = options.repetitions or 5
    found: dict[float, dict[str, list[dict[str, float]]]] = {load: {"mesh": [], "plain": []} for load in LOADS}
    capacities = []
    for number in range(rounds):
        async with _peers() as peers:
            capacity = await _capacity(peers["plain"])
            capacities.append(capacity)
            for load in LOADS:
                for name, peer in peers.items():
                    seed = random.Random(f"{options.seed} {number} {load}")
                    found[load][name].append(await _measure(peer, load * capacity, capacity, seed))
    points = [{"load": load, **{name: _figures(each) for name, each in found[load].items()}} for load in LOADS]
    by_load: dict[Any, dict[str, Any]] = {point["load"]: point for point in points}
    bars = [
        bar(f"good answers at {load:g} times capacity", by_load[load]["mesh"]["good"], limit, at_least=True)
        for load, limit in BARS.items()
    ]
    bars += [bar(f"wasted work at {load:g} times capacity", by_load[load]["mesh"]["wasted"], 0.01) for load in LOADS]
    expired = sum(one["expired_starts"] for load in LOADS for one in found[load]["mesh"])
    bars.append(bar("expired starts, over all", expired, 0))
    return result("goodput", rounds, {"capacity_per_s": round(median(capacities), 1), "points": points}, bars)


def _figures(rounds: list[dict[str, float]]) -> dict[str, Any]:
    figures: dict[str, Any] = {name: round(median([one[name] for one in rounds]), 4) for name in ("good", "wasted")}
    figures["good_spread"] = [round(pick(one["good"] for one in rounds), 3) for pick in (min, max)]
    figures["expired_starts"] = median([one["expired_starts"] for one in rounds])
    return figures


async def _capacity(peer: _Peer) -> float:
    """Calls a second of two callers that wait for each answer: one is always ready when the other is done."""

    async def caller(until: float) -> int:
        done = 0
        while time.monotonic() < until:
            done += await peer.call()
        return done

    await asyncio.gather(*(caller(time.monotonic() + 0.5) for _ in range(2)))
    began = time.monotonic()
    done = sum(await asyncio.gather(*(caller(began + 2.0) for _ in range(2))))
    return done / (time.monotonic() - began)


async def _measure(peer: _Peer, per_s: float, capacity: float, seed: random.Random) -> dict[str, float]:
    await _load(peer, per_s, WARM_UP, seed)
    await peer.stats()
    began = time.monotonic()
    good = await _load(peer, per_s, MEASURED, seed)
    took = time.monotonic() - began
    stats = await peer.stats()
    return {
        "good": good / took / capacity,
        "wasted": (stats["executed"] - good) / max(1, stats["executed"]),
        "expired_starts": stats["expired_starts"],
    }


async def _load(peer: _Peer, per_s: float, seconds: float, seed: random.Random) -> int:
    """Calls at random instants for so long; gives how many answers were good, once the last deadline has passed."""
    calls = []
    at = time.monotonic()
    until = at + seconds
    while (at := at + seed.expovariate(per_s)) < until:
        await asyncio.sleep(max(0.0, at - time.monotonic()))
        calls.append(asyncio.ensure_future(peer.call()))
    await asyncio.sleep(DEADLINE)
    return sum(await asyncio.gather(*calls))


@asynccontextmanager
async def _peers() -> AsyncIterator[dict[str, _Peer]]:
    async with AsyncExitStack() as stack:
        yield {name: await peer(stack) for name, peer in (("plain", _plain), ("mesh", _mesh))}


async def _plain(stack: AsyncExitStack) -> _Peer:
    server = await stack.enter_async_context(started("benchmarks.goodput.server", "plain", "--cpu-ms", str(CPU_MS)))
    channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{server['port']}"))
    execute: Any = channel.unary_unary(f"/{SERVICE}/Execute")
    stats: Any = channel.unary_unary(f"/{SERVICE}/Stats")

    async def call() -> bool:
        try:
            await execute(b"", timeout=DEADLINE)
        except grpc.aio.AioRpcError:
            return False
        return True

    async def told() -> dict[str, int]:
        answer: dict[str, int] = json.loads(await stats(b""))
        return answer

    return _Peer(call, told)


async def _mesh(stack: AsyncExitStack) -> _Peer:
    server = await stack.enter_async_context(started("benchmarks.goodput.server", "mesh", "--cpu-ms", str(CPU_MS)))
    target = f"127.0.0.1:{server['port']}"
    channel = await stack.enter_async_context(mesh_channel(target, mesh_token=TOKEN, message_bytes=4 * 1024 * 1024))
    execute: Any = channel.unary_unary(f"/{SERVICE}/Execute")
    stats: Any = channel.unary_unary(f"/{SERVICE}/Stats")

    async def call() -> bool:
        with entered(_lasting(DEADLINE)):
            try:
                await execute(b"")
            except (grpc.aio.AioRpcError, MeshError):
                return False
        return True

    async def told() -> dict[str, int]:
        with entered(_lasting(60.0)):
            answer: dict[str, int] = json.loads(await stats(b""))
        return answer

    return _Peer(call, told)


def _lasting(seconds: float) -> DeadlineContext:
    now = time.monotonic()
    return DeadlineContext("bench", now + seconds, "free", f"{1:032x}", "run", now)
