"""Whether anything is left of streams that end before they are done: memory, file descriptors, tasks, scopes, slots.

Streams of the whole mesh, its services as processes, end in the midst of a model's talk or a tool's work: two in five are
cancelled by their client, two in five expire, one in five loses its connection. A repetition is STREAMS of them, so the default is
100,000; for CI, `--repetitions 1` shows what leaks with every stream. What each service holds is asked after a warm-up and after
each repetition, when all streams are over: resident memory and descriptors from /proc, the rest from the service's own process
(soak_hop).
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.mesh import HOPS, Mesh, meshed
from benchmarks.report import Options, Result, bar, result
from benchmarks.soak_hop import PROBE_FOLDER
from benchmarks.soak_streams import TENANTS, Streams, policy

__all__ = ["soak"]

STREAMS = 10_000
WARM_UP = 5_000
"""Enough for every tenant's finished runs to be as many as an orchestrator keeps, and for arenas and caches to be filled."""
QUIET_WITHIN = 15.0
"""Seconds for the last streams' work to end and for connections to be closed, before what is left is called left."""
SETTLE = 1.0

Held = dict[str, float]


async def soak(options: Options) -> Result:
    """Play `repetitions` times STREAMS streams, after a warm-up."""
    rounds = options.repetitions or 10
    programs = {hop: ("benchmarks.soak_hop", hop) for hop in HOPS}
    async with meshed(policy(), TENANTS, programs, events=False, environment={PROBE_FOLDER: "{folder}"}) as mesh:
        streams = Streams(mesh)
        await streams.play(WARM_UP)
        seen = [await _quiet(mesh)]
        streams.ended.clear()
        began = time.monotonic()
        for number in range(1, rounds + 1):
            await streams.play(STREAMS)
            seen.append(await _quiet(mesh))
            rss = ", ".join(f"{hop} {held['rss_mb']} MB" for hop, held in seen[-1].items())
            print(
                f"soak: {number} of {rounds} after {time.monotonic() - began:.0f} s: {rss}", file=sys.stderr, flush=True
            )
        took = time.monotonic() - began
    first, last = seen[0], seen[-1]
    count = sum(streams.ended.values())
    figures = {
        "streams": count,
        "ended": dict(streams.ended),
        "seconds": round(took, 1),
        "streams_per_s": round(count / took, 1),
        "hops": {hop: {"first": first[hop], "last": last[hop]} for hop in HOPS},
        "rss_mb_after_each": {hop: [one[hop]["rss_mb"] for one in seen] for hop in HOPS},
    }
    return result("soak", rounds, figures, _bars(first, last, streams.ended["unexpected"] / count))


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
