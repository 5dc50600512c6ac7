"""Whether anything is left of streams that end before they are done: memory, file descriptors, tasks, scopes, slots.

Streams of the whole mesh, its services as processes, end in the midst of a model's talk or a tool's work: two in five are
cancelled by their client, two in five expire, one in five loses its connection. A repetition is STREAMS of them, so the default is
100,000; for CI, `--repetitions 1` shows what leaks with every stream. What each service holds is asked after a warm-up and after
each repetition, when all streams are over: resident memory and descriptors from /proc, the rest from the service's own process
(soak_hop). Plain grpc.aio is played as many in the same run: what it leaks by itself is no service's doing.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from benchmarks.mesh import HOPS, Mesh, meshed
from benchmarks.report import Options, Result, bar, result
from benchmarks.soak.hop import PROBE_FOLDER
from benchmarks.soak.plain import plain
from benchmarks.soak.streams import TENANTS, Streams, policy

__all__ = ["soak"]

STREAMS = 10_000
WARM_UP = 5_000
"""Enough for every tenant's finished runs to be as many as an orchestrator keeps, and for arenas and caches to be filled."""
QUIET_WITHIN = 15.0
"""Seconds for the last streams' work to end and for connections to be closed, before what is left is called left."""
SETTLE = 1.0

Held = dict[str, float]


async def soak(options: Options) -> Result:
    """Play `repetitions` times STREAMS streams, after a warm-up; then as many to plain grpc.aio."""
    rounds = options.repetitions or 10
    plainly = await _plainly(rounds)
    programs = {hop: ("benchmarks.soak.hop", hop) for hop in HOPS}
    async with meshed(policy(), TENANTS, programs, events=False, environment={PROBE_FOLDER: "{folder}"}) as mesh:
        streams = Streams(mesh)
        began = time.monotonic()
        seen = await _seen(streams, rounds, lambda: _quiet(mesh))
        took = time.monotonic() - began
    first, last = seen[0], seen[-1]
    count = sum(streams.ended.values())
    figures = {
        "streams": count,
        "ended": dict(streams.ended),
        "seconds": round(took, 1),
        "streams_per_s": round((WARM_UP + count) / took, 1),
        "hops": {hop: {"first": first[hop], "last": last[hop]} for hop in HOPS},
        "rss_mb_after_each": {hop: [one[hop]["rss_mb"] for one in seen] for hop in HOPS},
        "plain": plainly,
    }
    return result("soak", rounds, figures, _bars(first, last, streams.ended["unexpected"] / count))


async def _plainly(rounds: int) -> Result:
    """What two processes of plain grpc.aio hold, the one in front in the orchestrator's place."""
    async with plain() as mesh:

        async def quiet() -> dict[str, Held]:
            await asyncio.sleep(SETTLE)
            return {hop: _of_process(pid) for hop, pid in mesh.pids.items()}

        seen = await _seen(Streams(mesh), rounds, quiet)
    return {
        "hops": {hop: {"first": seen[0][hop], "last": seen[-1][hop]} for hop in mesh.pids},
        "rss_mb_after_each": {hop: [one[hop]["rss_mb"] for one in seen] for hop in mesh.pids},
    }


async def _seen(
    streams: Streams, rounds: int, quiet: Callable[[], Awaitable[dict[str, Held]]]
) -> list[dict[str, Held]]:
    """What each process holds when it is `quiet`, after the warm-up and after each round."""
    await streams.play(WARM_UP)
    seen = [await quiet()]
    streams.ended.clear()
    began = time.monotonic()
    for number in range(1, rounds + 1):
        await streams.play(STREAMS)
        seen.append(await quiet())
        rss = ", ".join(f"{hop} {held['rss_mb']} MB" for hop, held in seen[-1].items())
        print(f"soak: {number} of {rounds} after {time.monotonic() - began:.0f} s: {rss}", file=sys.stderr, flush=True)
    return seen


def _bars(first: dict[str, Held], last: dict[str, Held], unexpected: float) -> list[dict[str, Any]]:
    bars = []
    for hop in HOPS:
        was, now = first[hop], last[hop]
        growth = (now["rss_mb"] / was["rss_mb"] - 1) * 100
        bars.append(bar(f"{hop}: growth of memory after the warm-up, %", growth, 10.0))
        # One more for a connection that is being closed, and the task that serves it.
        bars.append(bar(f"{hop}: more file descriptors", now["fds"] - was["fds"], 1))
        bars.append(bar(f"{hop}: more tasks", now["tasks"] - was["tasks"], 1))
        bars += [bar(f"{hop}: {what} at the end", now[what], 0) for what in ("scopes", "slots", "waiting")]
    bars.append(bar("streams that ended otherwise than they were to", unexpected, 0.05))
    return bars


async def _quiet(mesh: Mesh) -> dict[str, Held]:
    """What each service holds once no work is left, or after QUIET_WITHIN."""
    until = time.monotonic() + QUIET_WITHIN
    while True:
        await asyncio.sleep(SETTLE)
        held = {hop: await _held(mesh, hop) for hop in HOPS}
        if time.monotonic() > until or not any(one["scopes"] or one["slots"] for one in held.values()):
            return held


async def _held(mesh: Mesh, hop: str) -> Held:
    told, pid = mesh.folder / f"{hop}.probe", mesh.pids[hop]
    told.unlink(missing_ok=True)
    os.kill(pid, signal.SIGUSR1)
    async with asyncio.timeout(QUIET_WITHIN):
        while not told.exists():  # noqa: ASYNC110  # another process writes it
            await asyncio.sleep(0.02)
    return {**_of_process(pid), **json.loads(told.read_text())}


def _of_process(pid: int) -> Held:
    status = Path(f"/proc/{pid}/status").read_text()
    rss_kb = int(status.partition("VmRSS:")[2].split()[0])
    return {"rss_mb": round(rss_kb / 1024, 1), "fds": len(os.listdir(f"/proc/{pid}/fd"))}
