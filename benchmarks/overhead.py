"""What the mesh's transport costs a call, against plain grpc.aio: latency one at a time, throughput at concurrency 32.

Both are measured in alternating batches against servers in processes of their own, and compared batch by batch, so that a
machine that is now slow and now fast slows both.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc

from benchmarks.process import started
from benchmarks.relay import SERVICE, TOKEN, traced
from benchmarks.report import Options, Result, bar, median, result
from deadlinemesh.deadline import DeadlineContext, entered
from deadlinemesh.transport import MeshChannel

__all__ = ["overhead"]

CONCURRENCY = 32
CALLS = {"unary": 150, "stream": 60}
BURST = {"unary": 1500, "stream": 160}
MESSAGES = {"latency": b"10", "throughput": b"100"}

Call = Callable[[bytes], Awaitable[None]]


async def overhead(options: Options) -> Result:
    """Measure unary and streaming calls, with tracing off and, beside them, on."""
    rounds = options.repetitions or 15
    async with AsyncExitStack() as stack:
        off = await stack.enter_async_context(started("benchmarks.relay"))
        on = await stack.enter_async_context(started("benchmarks.relay", "--traced"))
        peers = {
            "plain": await stack.enter_async_context(_plain(off["plain"])),
            "mesh": await stack.enter_async_context(_mesh(off["mesh"], None)),
            "traced": await stack.enter_async_context(_mesh(on["mesh"], traced())),
        }
        now = time.monotonic()
        with entered(DeadlineContext("bench", now + 3600, "enterprise", f"{1:032x}", "run", now)):
            figures = {kind: await _compare(peers, kind, rounds) for kind in ("unary", "stream")}
    bars = []
    for kind, measured in figures.items():
        bars.append(bar(f"{kind}: added at p50, µs a hop", measured["added_us_p50"], 60.0))
        bars.append(bar(f"{kind}: throughput over plain's", measured["throughput_ratio"], 0.9, at_least=True))
    return result("overhead", rounds, figures, bars)


async def _compare(peers: dict[str, dict[str, Call]], kind: str, rounds: int) -> dict[str, Any]:
    latency: dict[str, list[float]] = {name: [] for name in peers}
    throughput: dict[str, list[float]] = {name: [] for name in peers}
    for turn in range(rounds + 1):
        for name, calls in peers.items():
            seconds = await _latency(calls[kind], kind)
            rate = await _throughput(calls[kind], kind)
            if turn:  # the first round warms up
                latency[name].append(seconds * 1e6)
                throughput[name].append(rate)

    def added(name: str) -> float:
        return median([mine - plain for mine, plain in zip(latency[name], latency["plain"], strict=True)])

    def ratio(name: str) -> float:
        return median([mine / plain for mine, plain in zip(throughput[name], throughput["plain"], strict=True)])

    return {
        "added_us_p50": round(added("mesh"), 1),
        "throughput_ratio": round(ratio("mesh"), 3),
        "plain_us_p50": round(median(latency["plain"]), 1),
        "plain_per_s": round(median(throughput["plain"]), 1),
        "traced": {"added_us_p50": round(added("traced"), 1), "throughput_ratio": round(ratio("traced"), 3)},
    }


async def _latency(call: Call, kind: str) -> float:
    """Median seconds of a call while there is no other."""
    taken = []
    for _ in range(CALLS[kind]):
        began = time.perf_counter()
        await call(MESSAGES["latency"])
        taken.append(time.perf_counter() - began)
    return median(taken)


async def _throughput(call: Call, kind: str) -> float:
    """Calls a second at concurrency 32."""
    pending = iter(range(BURST[kind]))

    async def caller() -> None:
        for _ in pending:
            await call(MESSAGES["throughput"])

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CONCURRENCY)))
    return BURST[kind] / (time.perf_counter() - began)


@asynccontextmanager
async def _plain(port: int) -> AsyncIterator[dict[str, Call]]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield _calls(channel, {"timeout": 3600.0})


@asynccontextmanager
async def _mesh(port: int, tracer: Any) -> AsyncIterator[dict[str, Call]]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield _calls(MeshChannel(channel, TOKEN, tracer), {})


def _calls(channel: grpc.aio.Channel, options: dict[str, Any]) -> dict[str, Call]:
    echo, stream = channel.unary_unary(f"/{SERVICE}/Echo"), channel.unary_stream(f"/{SERVICE}/Stream")

    async def unary(request: bytes) -> None:
        await echo(request, **options)

    async def streaming(request: bytes) -> None:
        async for _ in stream(request, **options):
            pass

    return {"unary": unary, "stream": streaming}
