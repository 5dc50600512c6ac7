"""What the mesh's transport costs a call, against plain grpc.aio: latency one at a time, throughput at concurrency 32.

Each round has fresh server processes: where the system happens to put one's threads and memory moves a stream by 15%, far more than
the transport costs it. So mesh and plain are served by the same process, whose event loop neither slows for the other, and
within a round they take turns, so that a machine that is now slow and now fast slows both; the median of the rounds is reported.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple

import grpc

from benchmarks.process import started
from benchmarks.relay import SERVICE, channel_to, traced
from benchmarks.report import Options, Result, bar, median, result
from deadlinemesh.deadline import DeadlineContext, entered

__all__ = ["overhead"]

CONCURRENCY = 32
TURNS = 6
CALLS = {"unary": 40, "stream": 20}
BURST = {"unary": 384, "stream": 32}
"""Calls of each kind in a turn of one peer, one at a time and 32 at once."""
MESSAGES = {"latency": b"10", "throughput": b"100"}

Call = Callable[[bytes], Awaitable[None]]


async def overhead(options: Options) -> Result:
    """Measure unary and streaming calls, with tracing off and, beside them, on."""
    rounds = options.repetitions or 15
    measured: list[_Round] = []
    now = time.monotonic()
    with entered(DeadlineContext("bench", now + 3600, "enterprise", f"{1:032x}", "run", now)):
        for _ in range(rounds):
            async with _peers() as peers:
                measured.append({kind: await _compare(peers, kind) for kind in CALLS})
    figures = {kind: _figures([one[kind] for one in measured]) for kind in CALLS}
    bars = []
    for kind, found in figures.items():
        bars.append(bar(f"{kind}: added at p50, µs a hop", found["added_us_p50"], 60.0))
        bars.append(bar(f"{kind}: throughput over plain's", found["throughput_ratio"], 0.9, at_least=True))
    return result("overhead", rounds, figures, bars)


class _Measured(NamedTuple):
    """What one peer did in one round."""

    latency_us: float
    per_s: float


_Round = dict[str, dict[str, _Measured]]
"""By kind of call and name of peer."""


async def _compare(peers: dict[str, dict[str, Call]], kind: str) -> dict[str, _Measured]:
    latency: dict[str, list[float]] = {name: [] for name in peers}
    rates: dict[str, list[float]] = {name: [] for name in peers}
    for turn in range(TURNS + 1):
        for name, calls in peers.items():
            taken = await _latency(calls[kind], CALLS[kind])
            rate = await _throughput(calls[kind], BURST[kind])
            if turn:  # the first warms up
                latency[name] += taken
                rates[name].append(rate)
    return {name: _Measured(1e6 * median(latency[name]), median(rates[name])) for name in peers}


def _figures(rounds: list[dict[str, _Measured]]) -> dict[str, Any]:
    def added(name: str) -> float:
        return round(median([peers[name].latency_us - peers["plain"].latency_us for peers in rounds]), 1)

    def ratio(name: str) -> float:
        return round(median([peers[name].per_s / peers["plain"].per_s for peers in rounds]), 3)

    return {
        "added_us_p50": added("mesh"),
        "throughput_ratio": ratio("mesh"),
        "plain_us_p50": round(median([peers["plain"].latency_us for peers in rounds]), 1),
        "plain_per_s": round(median([peers["plain"].per_s for peers in rounds]), 1),
        "traced": {"added_us_p50": added("traced"), "throughput_ratio": ratio("traced")},
    }


async def _latency(call: Call, calls: int) -> list[float]:
    """Seconds of each call while there is no other."""
    taken = []
    for _ in range(calls):
        began = time.perf_counter()
        await call(MESSAGES["latency"])
        taken.append(time.perf_counter() - began)
    return taken


async def _throughput(call: Call, calls: int) -> float:
    """Calls a second at concurrency 32."""
    pending = iter(range(calls))

    async def caller() -> None:
        for _ in pending:
            await call(MESSAGES["throughput"])

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CONCURRENCY)))
    return calls / (time.perf_counter() - began)


@asynccontextmanager
async def _peers() -> AsyncIterator[dict[str, dict[str, Call]]]:
    async with AsyncExitStack() as stack:
        off = await stack.enter_async_context(started("benchmarks.relay"))
        on = await stack.enter_async_context(started("benchmarks.relay", "--traced"))
        yield {
            "plain": await stack.enter_async_context(_plain(off["plain"])),
            "mesh": await stack.enter_async_context(_mesh(off["mesh"], None)),
            "traced": await stack.enter_async_context(_mesh(on["mesh"], traced())),
        }


@asynccontextmanager
async def _plain(port: int) -> AsyncIterator[dict[str, Call]]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield _calls(channel, {"timeout": 3600.0})


@asynccontextmanager
async def _mesh(port: int, tracer: Any) -> AsyncIterator[dict[str, Call]]:
    async with channel_to(port, tracer) as channel:
        yield _calls(channel, {})


def _calls(channel: grpc.aio.Channel, options: dict[str, Any]) -> dict[str, Call]:
    echo: Any = channel.unary_unary(f"/{SERVICE}/Echo")
    stream: Any = channel.unary_stream(f"/{SERVICE}/Stream")

    async def unary(request: bytes) -> None:
        await echo(request, **options)

    async def streaming(request: bytes) -> None:
        async for _ in stream(request, **options):
            pass

    return {"unary": unary, "stream": streaming}
