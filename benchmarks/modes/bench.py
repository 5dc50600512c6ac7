"""The article's five ways in which concurrent calls break a budget, the naive way and through the mesh.

Tenants A and B share everything. A asks for little and often, B misbehaves in one way at a time:

    pool starvation  B's slow calls hold the connections that A's wait for
    fan-out          each child of B's runs has a timeout of its own, and nobody ends it with its parent
    background work  the store is slow to write for B, and whoever ends a run waits for what runs in the background
    model time       B's turns think for longer than its runs have, in the model slots that A needs
    retries          an upstream fails for B, and three attempts for each call leave it no room for A

The load is the same on both sides, run by run, and so are the upstreams, in a process of their own. The mesh is its three services
as processes, with one replacement: a tool-runner whose store of results is slow, which no policy could say. The naive side is one
process, as such platforms are. A's figures are of the runs that begin once B has built up:

    a_success             A's runs that got all they asked for in their time
    a_p99_ms              of those runs; one that was not answered counts as all of its time
    b_answered            B's runs that got an answer in their time, be it a partial one, or one that tells of a failure
    wrong_tenant_ms       time that A's runs spent waiting for what B held, or for B's work: in any line of the platform's or of an
                          upstream's, and not counted beyond what a run has; also writes on another tenant's account. A wait of less
                          than NOTICED is a turn of a busy event loop, and nobody's
    alive_after_deadline  runs, handlers, requests and writes of either tenant still alive GRACE after their deadline, those that
                          begin after it, and orphans that a service reports
    latest_ms             the latest end of any of them after its deadline, or its age when the measurement ended
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from typing import Any

import grpc
import httpx

from benchmarks.mesh import HOPS, Mesh, meshed
from benchmarks.modes.load import AGGRESSOR_S, MODES, Mode, Run, load
from benchmarks.modes.mesh import ENVIRONMENT, PROGRAMS, WRITE_BUDGET_S, policy, request, writes
from benchmarks.modes.naive import Naive
from benchmarks.modes.world import CAPACITY
from benchmarks.process import started
from benchmarks.report import Options, Result, bar, median, quantile, result
from deadlinemesh.v1 import common_pb2, orchestrator_pb2, orchestrator_pb2_grpc

__all__ = ["modes"]

POOL = CAPACITY
NOTICED = 0.005
GRACE = 0.1
"""Seconds. The mesh promises to report, within 250 ms, what does not end."""
LEFT_FOR_LAST = AGGRESSOR_S + 0.4
"""Seconds from the last run's beginning to the end of the measurement."""

WARM_RUNS, WARM_S = 5, 10.0

Figures = dict[str, float]


async def modes(options: Options) -> Result:
    """Measure every mode on both sides in turn, as often as `repetitions` says."""
    rounds = options.repetitions or 5
    found: dict[str, dict[str, list[Figures]]] = {mode.name: {"naive": [], "meshed": []} for mode in MODES}
    for number in range(rounds):
        seed = f"{options.seed} {number}"
        async with _Naive(seed) as naive, _Meshed(seed) as mesh:
            for mode in MODES:
                runs = load(mode, f"{seed} {mode.name}")
                found[mode.name]["naive"].append(await naive.measure(mode, runs))
                found[mode.name]["meshed"].append(await mesh.measure(mode, runs))
    figures = {name: {side: _summary(each) for side, each in sides.items()} for name, sides in found.items()}
    bars = []
    for name, sides in figures.items():
        mesh_figures = sides["meshed"]
        bars.append(bar(f"{name}: A's success", mesh_figures["a_success"]["median"], 0.95, at_least=True))
        bars.append(bar(f"{name}: charged to the wrong tenant, ms", mesh_figures["wrong_tenant_ms"]["median"], 0))
        bars.append(bar(f"{name}: alive after the deadline", mesh_figures["alive_after_deadline"]["median"], 0))
    return result("modes", rounds, {"modes": figures}, bars)


def _summary(rounds: list[Figures]) -> dict[str, dict[str, float]]:
    """The median of the rounds and their spread, by figure."""
    summary = {}
    for name in rounds[0]:
        values = [one[name] for one in rounds]
        spread = {"median": median(values), "least": min(values), "most": max(values)}
        summary[name] = {which: round(value, 3) for which, value in spread.items()}
    return summary


class _Seen:
    """What is seen of one measurement, and the figures of it."""

    def __init__(self, runs: list[Run]) -> None:
        self._by_key = {key: run for run in runs for key in run.keys}
        self._runs = runs
        self._ends: dict[str, tuple[float, bool]] = {}
        self._waited: defaultdict[str, float] = defaultdict(float)
        self._charged = 0.0
        self._late: list[float] = []
        self.deadlines: dict[str, float] = {}
        """The instant at which each run's user gives up, by the key of its first call."""

    async def play(self, one: Callable[[Run], Awaitable[bool]]) -> None:
        """Begin every run at its time, whether or not earlier ones have ended; return when the last has had its time."""
        began = time.monotonic()

        async def timed(run: Run) -> None:
            begun = time.monotonic()
            self.deadlines[run.keys[0]] = begun + run.seconds
            good = await one(run)
            taken = time.monotonic() - begun
            self._ends[run.keys[0]] = (taken, good and taken <= run.seconds)

        tasks = []
        for run in self._runs:
            await asyncio.sleep(max(0.0, began + run.at - time.monotonic()))
            tasks.append(asyncio.create_task(timed(run)))
        await asyncio.sleep(LEFT_FOR_LAST)
        await asyncio.gather(*tasks)

    def waited(self, run: Run, seconds: float) -> None:
        """A run waited for what was another's."""
        if run.counted and seconds > NOTICED:
            self._waited[run.keys[0]] += seconds

    def charged(self, seconds: float) -> None:
        """Work was on another tenant's account."""
        self._charged += seconds

    def ended(self, late: float) -> None:
        """Work ended so many seconds after its deadline, or lives on."""
        self._late.append(late)

    def requests(self, records: Iterable[dict[str, Any]], now: float) -> None:
        """What the upstreams have seen of this measurement."""
        for record in records:
            run = self._by_key[record["key"]]
            self.waited(run, record["queued"] or (0.0 if record["ended"] else now - record["began"]))
            self.ended((record["ended"] or now) - self.deadlines[run.keys[0]])

    def figures(self) -> Figures:
        mine = [(run, *self._ends[run.keys[0]]) for run in self._runs if run.counted]
        others = [self._ends[run.keys[0]][1] for run in self._runs if run.tenant == "B"]
        taken = [seconds if good else run.seconds for run, seconds, good in mine]
        wrong = sum(min(self._waited[run.keys[0]], run.seconds) for run, _, _ in mine) + self._charged
        return {
            "a_success": sum(good for _, _, good in mine) / len(mine),
            "a_p99_ms": quantile(taken, 0.99) * 1000,
            "b_answered": sum(others) / len(others),
            "wrong_tenant_ms": wrong * 1000,
            "alive_after_deadline": sum(one > GRACE for one in self._late),
            "latest_ms": max(0.0, *self._late) * 1000,
        }


class _Side:
    """A side of the comparison, with upstreams of its own."""

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self._stack = AsyncExitStack()
        self._known = 0

    async def _world(self) -> dict[str, str]:
        ready = started("benchmarks.modes.world", "--seed", self._seed)
        ports = (await self._stack.enter_async_context(ready))["ports"]
        self._urls = {upstream: f"http://127.0.0.1:{port}" for upstream, port in ports.items()}
        return self._urls

    async def _requests(self, seen: _Seen | None) -> None:
        """Take in what the upstreams have seen since the last time; None drops it."""
        async with httpx.AsyncClient(trust_env=False) as client:
            told = (await client.get(f"{self._urls['pool']}/records")).json()
        new, self._known = told["records"][self._known :], len(told["records"])
        if seen is not None:
            seen.requests(new, told["now"])

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()


class _Naive(_Side):
    async def __aenter__(self) -> _Naive:
        await self._world()
        return self

    async def measure(self, mode: Mode, runs: list[Run]) -> Figures:
        """Play `runs` on a fresh platform, and end what it left behind."""
        platform, seen = Naive(self._urls, POOL), _Seen(runs)
        left: list[asyncio.Task[None]] = []
        ends: dict[str, float] = {}

        async def one(run: Run) -> bool:
            task = asyncio.create_task(platform.ways[mode.name](run))
            left.append(task)
            task.add_done_callback(_seen_to)
            task.add_done_callback(lambda _: ends.setdefault(run.keys[0], time.monotonic()))
            await asyncio.wait({task}, timeout=run.seconds)  # then the user is gone, and the platform goes on
            return task.done() and not task.cancelled() and task.exception() is None

        await seen.play(one)
        await self._requests(seen)
        now = time.monotonic()
        for run in runs:
            key = run.keys[0]
            seen.waited(run, platform.waited_by(key, now))
            seen.ended(ends.get(key, now) - seen.deadlines[key])
        for wrote in platform.writes:
            seen.ended((wrote["ended"] or now) - wrote["began"] - WRITE_BUDGET_S)
        for task in left:
            task.cancel()
        await asyncio.wait(left)
        await platform.aclose()
        figures = seen.figures()
        if platform.writes:
            figures["writes_lost"] = sum(wrote["lost"] for wrote in platform.writes) / len(platform.writes)
        return figures


def _seen_to(task: asyncio.Task[None]) -> None:
    """Nobody asks what became of a run whose user is gone; asyncio would complain of that."""
    if not task.cancelled():
        task.exception()


class _Meshed(_Side):
    async def __aenter__(self) -> _Meshed:
        given = policy(await self._world(), POOL)
        running = meshed(given, ("a", "b"), PROGRAMS, environment=ENVIRONMENT)
        self._mesh: Mesh = await self._stack.enter_async_context(running)
        channel = await self._stack.enter_async_context(grpc.aio.insecure_channel(self._mesh.target))
        self._stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
        self._names: dict[str, Run] = {}
        self._writes_known = 0
        await self._warm()
        return self

    async def _warm(self) -> None:
        """Have every service and every pool do once what it is measured at, as those of a platform that is up have."""
        for mode in MODES:
            for number in range(WARM_RUNS):
                await self._run(mode, Run("A", number, 0.0, WARM_S))
        await self._requests(None)

    async def measure(self, mode: Mode, runs: list[Run]) -> Figures:
        """Play `runs`, and read what the services have told of them."""
        seen = _Seen(runs)
        self._names = {}
        await seen.play(lambda run: self._run(mode, run))
        await asyncio.sleep(0.2)  # until the last events are written
        await self._requests(seen)
        for hop in HOPS:
            self._told(hop, seen)
        self._written(seen)
        return seen.figures()

    async def _run(self, mode: Mode, run: Run) -> bool:
        """Whether a run got all it asked for; for B, anything."""
        metadata = self._mesh.metadata_of[run.tenant.lower()]
        good, wanted = 0, 0 if mode.name == "model time" else run.parts
        finished: orchestrator_pb2.RunFinished | None = None
        try:
            async for event in self._stub.Run(request(mode.name, run), timeout=run.seconds, metadata=metadata):
                match event.WhichOneof("event"):
                    case "started":
                        self._names[event.started.run_id] = run
                    case "tool_call_finished":
                        good += event.tool_call_finished.status == common_pb2.TOOL_STATUS_OK
                    case "finished":
                        finished = event.finished
        except grpc.aio.AioRpcError:
            return False
        if finished is None or not finished.answer:
            return False
        whole = finished.outcome == orchestrator_pb2.OUTCOME_COMPLETED and not finished.partial
        return run.tenant == "B" or (whole and good == wanted)

    def _told(self, hop: str, seen: _Seen) -> None:
        now, open_calls = time.monotonic(), dict[tuple[str, str, float], float]()
        for event in self._mesh.events(hop, "Wait", "CallStarted", "CallEnded", "OrphanReported"):
            run = self._names.get(event["run_id"])
            if run is None:
                continue
            if event["event"] == "Wait":
                seen.waited(run, event["seconds"])
                continue
            if event["event"] == "OrphanReported":
                seen.ended(event["age"])
                continue
            call = (event["method"], event["run_id"], event["started_at"])
            if event["event"] == "CallStarted":
                open_calls[call] = event["deadline_at"]
            else:
                open_calls.pop(call, None)
                seen.ended(event["ended_at"] - event["deadline_at"])
        for deadline_at in open_calls.values():
            seen.ended(now - deadline_at)

    def _written(self, seen: _Seen) -> None:
        path = self._mesh.folder / "writes"
        wrote = writes(path.read_text()) if path.exists() else []
        new, self._writes_known = wrote[self._writes_known :], len(wrote)
        for one in new:
            seen.ended(one["ended"] - one["deadline_at"])
            if one["charged"] != one["owner"]:
                seen.charged(one["ended"] - one["began"])
