"""What the mesh's transport costs a call, against plain grpc.aio: latency one at a time, throughput at concurrency 32.

`mesh` is a process as `dmesh serve` sets it up, `plain` one as Python and asyncio set it up. Beside it, `same_loop`: plain grpc.aio
in the mesh's own process, on its event loop. That is what the transport costs by itself.

Where the system happens to put threads and memory moves a call by more than the transport costs it, and for seconds on end. So
servers and client stay on a core each, each round has fresh processes, and within a round each call of the mesh is paired with a
plain one just before it, and each burst with a plain one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, NamedTuple

import grpc

from benchmarks.process import cores, started, stay_on
from benchmarks.report import Options, Result, bar, median, result
from benchmarks.transport.relay import SERVICE, channel_to, traced
from deadlinemesh.deadline import DeadlineContext, entered

__all__ = ["overhead"]

CONCURRENCY = 32
TURNS = 8
CALLS = {"unary": 40, "stream": 20}
"""Pairs of calls of each kind in a turn, one call at a time."""
BURST = {"unary": 192, "stream": 32}
"""Calls of each kind in a burst, 32 at once."""
MESSAGES = {"latency": b"10", "throughput": b"100"}
AGAINST_PLAIN = {"mesh": "plain", "traced": "plain", "same_loop": "plain_on_that_loop"}

Call = Callable[[bytes], Awaitable[None]]


async def overhead(options: Options) -> Result:
    """Measure unary and streaming calls, with tracing off and, beside them, on."""
    rounds = options.repetitions or 9
    measured: dict[str, list[dict[str, _Compared]]] = {kind: [] for kind in CALLS}
    now = time.monotonic()
    with entered(DeadlineContext("bench", now + 3600, "enterprise", f"{1:032x}", "run", now)), _a_core_each() as core:
        for _ in range(rounds):
            async with _peers(core) as peers:
                for kind, rows in measured.items():
                    calls = {name: each[kind] for name, each in peers.items()}
                    rows.append({it: await _compare(calls[it], calls[to], kind) for it, to in AGAINST_PLAIN.items()})
    figures = {kind: _figures(rows) for kind, rows in measured.items()}
    bars = []
    for kind, found in figures.items():
        bars.append(bar(f"{kind}: added at p50, µs a hop", found["added_us_p50"], 60.0))
        bars.append(bar(f"{kind}: throughput over plain's", found["throughput_ratio"], 0.9, at_least=True))
    return result("overhead", rounds, figures, bars)


class _Compared(NamedTuple):
    """One peer beside a plain one, in one round."""

    added_us: float
    ratio: float
    plain_us: float
    plain_per_s: float


async def _compare(call: Call, plain: Call, kind: str) -> _Compared:
    pairs: list[tuple[float, float]] = []
    bursts: list[tuple[float, float]] = []
    for turn in range(TURNS + 1):
        one_by_one = [(await _seconds(plain), await _seconds(call)) for _ in range(CALLS[kind])]
        rates = (await _throughput(plain, BURST[kind]), await _throughput(call, BURST[kind]))
        if turn:  # the first warms up
            pairs += one_by_one
            bursts.append(rates)
    return _Compared(
        added_us=1e6 * median([seconds - plain_seconds for plain_seconds, seconds in pairs]),
        ratio=median([rate / plain_rate for plain_rate, rate in bursts]),
        plain_us=1e6 * median([plain_seconds for plain_seconds, _ in pairs]),
        plain_per_s=median([plain_rate for plain_rate, _ in bursts]),
    )


def _figures(rounds: list[dict[str, _Compared]]) -> dict[str, Any]:
    def of(name: str) -> dict[str, Any]:
        added, ratios = [one[name].added_us for one in rounds], [one[name].ratio for one in rounds]
        return {
            "added_us_p50": round(median(added), 1),
            "added_us_range": [round(min(added), 1), round(max(added), 1)],
            "throughput_ratio": round(median(ratios), 3),
            "throughput_range": [round(min(ratios), 3), round(max(ratios), 3)],
        }

    plain = [one["mesh"] for one in rounds]
    return {
        **of("mesh"),
        "plain_us_p50": round(median([one.plain_us for one in plain]), 1),
        "plain_per_s": round(median([one.plain_per_s for one in plain]), 1),
        "traced": of("traced"),
        "same_loop": of("same_loop"),
    }


async def _seconds(call: Call) -> float:
    """How long one call takes while there is no other."""
    began = time.perf_counter()
    await call(MESSAGES["latency"])
    return time.perf_counter() - began


async def _throughput(call: Call, calls: int) -> float:
    """Calls a second at concurrency 32, once as many have warmed up what serves them."""

    async def burst() -> None:
        pending = iter(range(calls))

        async def caller() -> None:
            for _ in pending:
                await call(MESSAGES["throughput"])

        await asyncio.gather(*(caller() for _ in range(CONCURRENCY)))

    await burst()
    began = time.perf_counter()
    await burst()
    return calls / (time.perf_counter() - began)


@contextmanager
def _a_core_each() -> Iterator[list[str]]:
    """Keep this process on a core of its own, where there are two; gives the option that keeps a server on the other."""
    mine = cores()
    if len(mine) < 2:
        yield []
        return
    stay_on(mine[1])
    try:
        yield [f"--core={mine[0]}"]
    finally:
        stay_on(*mine)


@asynccontextmanager
async def _peers(core: list[str]) -> AsyncIterator[dict[str, dict[str, Call]]]:
    async with AsyncExitStack() as stack:

        async def relay(*options: str) -> Any:
            return await stack.enter_async_context(started("benchmarks.transport.relay", *core, *options))

        plain, mesh, on = await relay("--plain"), await relay(), await relay("--traced")
        yield {
            "plain": await stack.enter_async_context(_plain(plain["plain"])),
            "plain_on_that_loop": await stack.enter_async_context(_plain(mesh["plain"])),
            "mesh": (unloaded := await stack.enter_async_context(_mesh(mesh["mesh"], None))),
            "same_loop": unloaded,
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
