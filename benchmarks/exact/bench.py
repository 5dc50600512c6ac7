"""How much of a client's deadline is held back, and whether an answer is ever lost.

Clients in Python, Go and Node start runs that outlast their deadlines: with our client, whose calls
carry the exact deadline, and beside it with the generated stub, whose calls have `grpc-timeout`
alone. A few long runs begin one by one; while they last, MANY short ones end, AT_ONCE per client.
The figures are the clients' own:

    held    the deadline less the time that the grant lets the run use
    left    what was left of the deadline when the answer was there
    lost    runs without an answer: the client's own timer was first, or the mesh refused them

What a starved machine does is not the mesh's. A run is judged only where this idle process was not
late by STALL_MS about then; `disturbed` counts the other runs, `lost_disturbed` their losses. Short
runs are made again then.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from benchmarks.exact.clients import Ended, LoadClient, NotBuilt, built, load_client
from benchmarks.mesh import meshed
from benchmarks.report import Options, Result, bar, result, spread

__all__ = ["exact"]

LANGUAGES = ("python", "go", "node")
MANY = 1000
"""Runs by our clients, all languages together; the stubs make a fifth of it."""
AT_ONCE = 30
"""Short runs of one client at the same time."""
RAMP = 0.05
"""Seconds between the beginnings of two of them at least."""
SHORT_MS = (2000, 5000)
LONG_MS = (20_000, 300_000)
LONG_RUNS = 5
"""Of each length, by each client."""
APART = 0.2
"""Seconds between the beginnings of two long runs of one client."""
MOST_HELD_MS = 100.0
TICK = 0.01
"""Seconds between two looks at how late this process is."""
STALL_MS = 25.0
TRIES = 5
"""Times that a short run is made, at most, until no stall disturbs it."""
BEGINNING, ENDING = 0.2, 1.0
"""Seconds from a stall within which the beginning and the end of a run are disturbed."""

PROMPT = "Run the long task for 1000 seconds"
_POLICY: dict[str, Any] = {
    "tiers": {"enterprise": {"run_budget": "300s", "iterations": 10}},
    "models": {"quick": {"provider": "scripted", "slots": 1000, "first_token": 0, "per_token": 0}},
}


async def exact(options: Options) -> Result:
    """Measure; `repetitions` is how many short runs our clients make."""
    count = options.repetitions or MANY
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        commands, skipped = await _commands(folder)
        mesh = await stack.enter_async_context(meshed(_POLICY, events=False))
        key = dict(mesh.metadata)["authorization"].removeprefix("Bearer ")
        environment = {"DMESH_ADDR": mesh.target, "DMESH_API_KEY": key}
        clients = {
            name: await stack.enter_async_context(load_client(command, environment))
            for name, command in commands.items()
        }
        stalls: list[float] = []
        watching = asyncio.create_task(_watch(stalls))
        long, short = await _all_runs(clients, count, random.Random(options.seed), stalls)
        watching.cancel()
    figures: dict[str, Any] = {"skipped": skipped} if skipped else {}
    figures |= {name: _figures(long[name], short[name], stalls) for name in clients}
    return result("exact", count, figures, _bars(figures, list(clients), skipped, count))


async def _watch(stalls: list[float]) -> None:
    """Note when this idle process was late, as whatever else the machine had to do then was."""
    while True:
        due_at = time.monotonic() + TICK
        await asyncio.sleep(TICK)
        if time.monotonic() - due_at >= STALL_MS / 1000:
            stalls += (due_at, time.monotonic())


async def _commands(folder: Path) -> tuple[dict[str, Sequence[str]], dict[str, str]]:
    """What starts each language's client, and why there is none."""
    commands: dict[str, Sequence[str]] = {}
    skipped: dict[str, str] = {}
    for language in LANGUAGES:
        try:
            commands[language] = await built(language, folder)
        except NotBuilt as error:
            skipped[language] = str(error)
            print(f"exact: {language} is skipped: {error}", file=sys.stderr)
    return commands, skipped


Runs = dict[bool, list[tuple[int, Ended]]]
"""How runs ended and with what deadline, by whether they were begun plainly."""


async def _all_runs(
    clients: Mapping[str, LoadClient], count: int, draw: random.Random, stalls: Sequence[float]
) -> tuple[dict[str, Runs], dict[str, Runs]]:
    """The long and the short runs of each client."""
    long: dict[str, Runs] = {name: {False: [], True: []} for name in clients}
    short: dict[str, Runs] = {name: {False: [], True: []} for name in clients}

    async def run(client: LoadClient, runs: Runs, deadline_ms: int, plain: bool) -> Ended:
        ended = await client.run(deadline_ms, PROMPT, plain=plain)
        runs[plain].append((deadline_ms, ended))
        return ended

    async def one_by_one(client: LoadClient, runs: Runs) -> None:
        async with asyncio.TaskGroup() as group:
            for deadline_ms in sorted(LONG_MS * LONG_RUNS, reverse=True):
                for plain in (False, True):
                    group.create_task(run(client, runs, deadline_ms, plain))
                    await asyncio.sleep(APART)

    async def many(client: LoadClient, runs: Runs, count: int, plain: bool) -> None:
        places = asyncio.Semaphore(AT_ONCE)

        async def in_turn(deadline_ms: int) -> None:
            for _ in range(TRIES):
                async with places:
                    ended = await run(client, runs, deadline_ms, plain)
                await asyncio.sleep(2 * TICK)  # for a stall to be noted
                if not _disturbed(ended.ended_at, stalls, ENDING):
                    break

        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(in_turn(draw.randint(*SHORT_MS)))
                await asyncio.sleep(RAMP)

    async with asyncio.TaskGroup() as all_long:
        tasks = [all_long.create_task(one_by_one(client, long[name])) for name, client in clients.items()]
        await asyncio.sleep(APART * len(LONG_MS) * LONG_RUNS * 2 + 1.0)  # those are begun while nothing else is
        for plain, runs in ((False, count), (True, count // 5)):
            async with asyncio.TaskGroup() as group:
                for place, (name, client) in enumerate(clients.items()):
                    share = len(range(place, runs, len(clients)))
                    group.create_task(many(client, short[name], share, plain))
        await asyncio.gather(*tasks)
    return long, short


def _figures(long: Runs, short: Runs, stalls: Sequence[float]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for kind, plain in (("exact", False), ("plain", True)):
        told[kind] = {
            f"{deadline_ms // 1000}s": _of([ended for asked, ended in long[plain] if asked == deadline_ms], stalls)
            for deadline_ms in LONG_MS
        }
        if short[plain]:
            told[kind]["short"] = _of([ended for _, ended in short[plain]], stalls)
    return told


def _of(runs: Sequence[Ended], stalls: Sequence[float]) -> dict[str, Any]:
    judged = [one for one in runs if not _disturbed(one.ended_at, stalls, ENDING)]
    lost = [one.error for one in judged if not one.outcome]
    figures: dict[str, Any] = {
        "runs": len(runs),
        "disturbed": len(runs) - len(judged),
        "lost_disturbed": sum(not one.outcome for one in runs) - len(lost),
        "at_their_deadline": sum(one.outcome == "OUTCOME_DEADLINE_SPENT" for one in judged),
        "lost": len(lost),
    }
    if lost:
        figures["lost_by"] = lost[0][:200]
    if held := [one.held_ms for one in runs if one.held_ms and not _disturbed(one.began_at, stalls, BEGINNING)]:
        figures["held"] = spread(held)
    if left := [one.left_ms for one in judged if one.outcome]:
        figures["left"] = {**spread(left), "least_ms": min(left)}
    return figures


def _disturbed(instant: float, stalls: Sequence[float], reach: float) -> bool:
    return any(abs(instant - stall) < reach for stall in stalls)


def _bars(
    figures: Mapping[str, Any], languages: Sequence[str], skipped: Mapping[str, str], count: int
) -> list[dict[str, Any]]:
    bars = []
    for language in languages:
        ours = figures[language]["exact"]
        for deadline_ms in LONG_MS:
            name = f"{deadline_ms // 1000}s"
            held = ours[name].get("held", {}).get("max_ms", float(deadline_ms))
            bars.append(bar(f"{language}, {name}: held back at most, ms", held, MOST_HELD_MS))
    kinds = [kind for language in languages for kind in figures[language]["exact"].values()]
    bars.append(bar("our clients: lost answers", sum(kind["lost"] for kind in kinds), 0))
    judged = sum(kind["runs"] - kind["disturbed"] for kind in kinds)
    ended = sum(kind["at_their_deadline"] for kind in kinds)
    for what, measured, limit in (
        ("runs that no stall of the machine disturbed", judged, count),
        ("part of those that ended at their deadline", ended / max(judged, 1), 0.99),
    ):
        bars.append(bar(f"our clients: {what}", measured, limit, at_least=True))
    if os.environ.get("CI") == "true":
        bars.append(bar("languages skipped", len(skipped), 0))
    return bars
