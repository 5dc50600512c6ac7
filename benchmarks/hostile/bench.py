"""What each attack costs the mesh, and a tenant who has nothing to do with it; beside it, what frames cost plain grpc.aio.

For each attack the mesh runs as three processes. A neighbour calls alone, then while the attacker, a process of its own with a
fixed rate, sends to the orchestrator. In the end all services are told to drain while the attack goes on. Attacks with frames are
played to a plain grpc.aio server too, for a shorter time and without bars.

    memory_mb       the most that any service's resident memory has grown during the attack
    goodput_kept    the share of the neighbour's calls answered in time, over that alone
    p99_ratio       the neighbour's p99 over that alone
    lag_ms          the longest that any event loop has stood still; 0 is less than 50
    drain_s         from SIGTERM to the end of the last service; NEVER_S where it did not end

HOSTILE_SECONDS and HOSTILE_ONLY in the environment make a run shorter: seconds of each attack, names of attacks.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

from benchmarks.hostile.attacks import ATTACKS, RAW
from benchmarks.hostile.world import DRAIN_S, Neighbour, World, mesh_world, plain_world
from benchmarks.process import started
from benchmarks.report import Options, Result, bar, median, result

__all__ = ["BARS", "hostile", "judged", "measured"]

ATTACK_S = 20.0
ALONE_PART = 0.3
"""Of the time of an attack, that the neighbour is measured alone."""
PLAIN_PART = 0.3
"""Of the time of an attack, that it is played to the plain server."""
WARM_UP_S = 2.0
SAMPLE_S = 0.1
PREPARED_WITHIN_S = 60.0
"""Seconds for an attacker to make the runs that it is going to read."""
NEVER_S = 10.0
"""Seconds after which a service is taken never to end."""
BARS = {"memory_mb": 30.0, "goodput_kept": 0.95, "p99_ratio": 2.0, "lag_ms": 100.0, "drain_s": DRAIN_S + 2.0}

Figures = dict[str, float]
WorldOf = Callable[[], AbstractAsyncContextManager[World]]


async def hostile(options: Options) -> Result:
    """Play every attack, or those that are named."""
    named = options.only or tuple(filter(None, os.environ.get("HOSTILE_ONLY", "").split(",")))
    seconds = options.seconds or float(os.environ.get("HOSTILE_SECONDS", ATTACK_S))
    return await measured(named or tuple(ATTACKS), seconds, options.repetitions or 1)


async def measured(names: Sequence[str], seconds: float, rounds: int) -> Result:
    """Play the attacks of these names; figures are the medians of so many rounds."""
    if unknown := set(names) - ATTACKS.keys():
        raise ValueError(f"{', '.join(sorted(unknown))}: no such attack; there are {', '.join(ATTACKS)}")
    raw, bars = {attack.name for attack in RAW}, list[dict[str, Any]]()
    figures: dict[str, Any] = {}
    print(f"{'':29}" + " ".join(f"{what[:9]:>9}" for what in BARS), file=sys.stderr, flush=True)
    for name in names:
        mesh = await _median_of(rounds, mesh_world, name, seconds)
        figures[name] = {
            "what": ATTACKS[name][0].what if len(ATTACKS[name]) == 1 else "a mixture",
            "per_s": sum(attack.per_s for attack in ATTACKS[name]),
            "mesh": mesh,
        }
        if name in raw:
            figures[name]["plain"] = await _median_of(rounds, plain_world, name, seconds * PLAIN_PART)
        bars += (verdicts := judged(name, mesh))
        _tell(name, figures[name], [one["what"] for one in verdicts if not one["holds"]])
    return result("hostile", rounds, {"seconds": seconds, "attacks": figures}, bars)


def judged(name: str, figures: Figures) -> list[dict[str, Any]]:
    """The bars of one attack."""
    return [
        bar(f"{name}: {what}", figures[what], limit, at_least=what == "goodput_kept") for what, limit in BARS.items()
    ]


def _tell(name: str, figures: Mapping[str, Any], broken: Sequence[str]) -> None:
    """Print the row of one attack, as it is done."""
    sides = (
        f"{side} " + " ".join(f"{figures[side][what]:9g}" for what in BARS)
        for side in ("mesh", "plain")
        if side in figures
    )
    verdict = "holds" if not broken else "BROKEN: " + ", ".join(one.partition(": ")[2] for one in broken)
    print(f"{name:24} {'  '.join(sides)}  {verdict}", file=sys.stderr, flush=True)


async def _median_of(rounds: int, world_of: WorldOf, name: str, seconds: float) -> Figures:
    found = [await _attacked(world_of, name, seconds) for _ in range(rounds)]
    return {what: round(median([one[what] for one in found]), 3) for what in found[0]}


async def _attacked(world_of: WorldOf, name: str, seconds: float) -> Figures:
    async with world_of() as world:
        neighbour = Neighbour(world)
        await neighbour.calls(WARM_UP_S)
        alone = await neighbour.calls(seconds * ALONE_PART)
        before, lagged = world.rss_mb(), len(world.lags())
        async with _attacking(world, name) as sent:
            most = dict(before)
            watching = asyncio.ensure_future(_watch_memory(world, most))
            began = sent()
            beside = await neighbour.calls(seconds)
            rate = (sent() - began) / seconds
            watching.cancel()
            lags = world.lags()[lagged:]
            drained = await _drained(world)
    return {
        "memory_mb": max(most[service] - before[service] for service in most),
        "goodput_kept": beside[0] / alone[0] if alone[0] else 1.0,
        "p99_ratio": beside[1] / alone[1],
        "lag_ms": max(lags, default=0.0) * 1000,
        "drain_s": drained,
        "alone_p99_ms": alone[1] * 1000,
        "beside_p99_ms": beside[1] * 1000,
        "sent_per_s": rate,
    }


@asynccontextmanager
async def _attacking(world: World, name: str) -> AsyncIterator[Callable[[], int]]:
    """Play an attack for the block; gives what tells how many units have been sent."""
    told = world.folder / "sent"
    arguments = ("--port", str(world.port), "--key", world.attacker_key, "--tell", str(told))

    def sent() -> int:
        with suppress(OSError, ValueError):
            return int(told.read_text())
        return 0

    async with started("benchmarks.hostile.attacking", name, *arguments):
        async with asyncio.timeout(PREPARED_WITHIN_S):
            while not sent():  # noqa: ASYNC110  # another process tells
                await asyncio.sleep(SAMPLE_S)
        yield sent


async def _watch_memory(world: World, most: dict[str, float]) -> None:
    while True:
        for service, rss in world.rss_mb().items():
            most[service] = max(most[service], rss)
        await asyncio.sleep(SAMPLE_S)


async def _drained(world: World) -> float:
    """Tell every service to end; the seconds until the last one has, or NEVER_S, after which it is killed."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    for pid in world.pids.values():
        os.kill(pid, signal.SIGTERM)
    took = await asyncio.gather(*(_ended(pid) for pid in world.pids.values()))
    return max(at - began for at in took) if all(took) else NEVER_S


async def _ended(pid: int) -> float:
    """The instant at which a process ends; 0 if it had to be killed."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return loop.time()
    loop.add_reader(handle, ended.set)
    try:
        async with asyncio.timeout(NEVER_S):
            await ended.wait()
        return loop.time()
    except TimeoutError:
        os.kill(pid, signal.SIGKILL)
        return 0.0
    finally:
        loop.remove_reader(handle)
        os.close(handle)
