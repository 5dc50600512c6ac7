"""Plays a scenario on the mesh in memory, in virtual time, and gathers all that was seen of it.

When everybody has been answered and the mesh is idle, as many runs as a model has slots are started at once, and as many calls as
there are connections: had anything been lost on the way, they would have to wait for it. Then time passes until every run should
be forgotten.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from itertools import chain
from math import inf
from typing import Any

import grpc
import httpx
from tests.simulation.scenario import (
    HTTP_TOOLS,
    IDEMPOTENT,
    MODELS,
    SHORTENER,
    TENANTS,
    Attempt,
    CallScript,
    Leaving,
    Results,
    RunScript,
    Scenario,
    Step,
    Store,
    Turn,
)
from tests.simulation.store import SimulatedStore
from tests.simulation.upstreams import HttpHost, Model, Process, Stage, Work, prompt
from tests.simulation.workers import SimulatedKeeper
from tests.support.seen import Heard, Seen, cause_of

from deadlinemesh.errors import Cause
from deadlinemesh.policy import Policy, default_policy
from deadlinemesh.telemetry import Event
from deadlinemesh.testing import virtual_time
from deadlinemesh.testing.mesh import MemoryMesh
from deadlinemesh.transport.codec import message_from_wire
from deadlinemesh.v1 import orchestrator_pb2, orchestrator_pb2_grpc
from deadlinemesh.vocabulary import Message

__all__ = ["Trace", "play"]

LONGEST = 2000.0
"""Virtual seconds in which everything must be over: much more than any budget."""

CALLS_PER_WORKER = 3
"""After which a process is replaced."""

CALM_AFTER = 8.0
"""Virtual seconds after which no call is refused at home any more for those that were shed: 16 half-lives of a throttle."""


@dataclass(frozen=True, slots=True, repr=False)  # asyncio would spend more time on this repr than on some runs
class Trace:
    """All that was seen of a scenario."""

    scenario: Scenario
    policy: Policy
    scripts: tuple[RunScript, ...]
    """The scenario's runs, and those that came at the end."""
    works: tuple[Work, ...]
    processes: tuple[Process, ...]
    events: tuple[Event, ...]
    seen: tuple[Seen, ...]
    cancelled: tuple[tuple[str, float], ...]
    """Run ids, and when CancelRun was called for them."""
    histories: tuple[tuple[int, tuple[Message, ...]], ...]
    """Of each run, by its number, whenever somebody looked."""
    leftovers: tuple[str, ...]
    """What was there when nothing should have been."""
    unforeseen: tuple[str, ...]
    """Failures that nobody was there to handle."""
    faults: Counter[str]
    """What went wrong on purpose, and how often."""
    reached: Counter[str]
    """What else must happen now and then for the proof to be worth anything."""


def play(scenario: Scenario) -> Trace:
    """Play `scenario`. The same one takes the same course each time."""
    state = random.getstate()
    random.seed(scenario.luck)
    gc.disable()  # what a collection ends takes its turns of the event loop whenever that happens to be
    try:
        with _silence():
            return virtual_time.run(_World(scenario).play())
    finally:
        gc.enable()
        random.setstate(state)


class _World:
    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._probes = _probes(scenario)
        self._scripts = (*scenario.runs, *chain.from_iterable(self._probes))
        self._seen: list[Seen] = []
        self._cancelled: list[tuple[str, float]] = []
        self._histories: list[tuple[int, tuple[Message, ...]]] = []
        self._leftovers: list[str] = []
        self._unforeseen: list[str] = []
        self._run_ids: dict[int, str] = {}
        self._extras: set[asyncio.Task[None]] = set()
        self._stub: Any
        self._mesh: MemoryMesh
        self._stage: Stage

    async def play(self) -> Trace:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._not_handled)
        scenario = self._scenario
        policy = _policy(
            scenario.slots,
            scenario.connections,
            scenario.places,
            scenario.most_waiting,
            scenario.falls_back,
            scenario.store,
            scenario.results,
            scenario.workers,
        )
        self._stage = Stage(self._scripts, inf if scenario.results is None else scenario.results.longest)
        self._mesh = MemoryMesh(
            policy,
            virtual_time.clock(),
            transit=scenario.transit,
            rounding=scenario.rounding,
            providers={name: Model(name, self._stage) for name in (*MODELS, SHORTENER)},
            cache=None if scenario.store is None else SimulatedStore(scenario.store, self._stage),
            http_client=self._http_client,
            keeper=lambda: SimulatedKeeper(self._stage),
        )
        self._stub = orchestrator_pb2_grpc.OrchestratorServiceStub(self._mesh.channel)
        if scenario.shutdown is not None:
            loop.call_later(scenario.shutdown.at, self._shut_down, scenario.shutdown.hop)
        await self._all_over([self._client(number) for number in range(len(scenario.runs))])
        if scenario.shutdown is None:
            await asyncio.sleep(CALM_AFTER)
            number = len(scenario.runs)
            for probes in self._probes:
                await self._all_over([self._client(number + probe) for probe in range(len(probes))])
                number += len(probes)
            await self._look_back()
        return Trace(
            scenario,
            policy,
            self._scripts,
            tuple(self._stage.works),
            tuple(self._stage.processes.values()),
            tuple(self._mesh.events.events),
            tuple(self._seen),
            tuple(self._cancelled),
            tuple(self._histories),
            tuple(self._leftovers),
            (*self._unforeseen, *self._stage.unforeseen),
            self._stage.faults + _other_faults(scenario, self._seen, self._cancelled),
            self._stage.reached,
        )

    def _shut_down(self, hop: str) -> None:
        self._mesh.hops[hop].drain()
        self._mesh.hops[hop].scopes.stop_all(Cause.DRAINING)

    def _http_client(self, _: object) -> httpx.AsyncClient:
        return httpx.AsyncClient(timeout=None, transport=HttpHost(self._stage))

    def _not_handled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._unforeseen.append(f"{context['message']}: {context.get('exception')!r}")

    async def _all_over(self, clients: list[Any]) -> None:
        """Have `clients` call, and wait until none of them, and nothing else, is at work any more."""
        tasks = [asyncio.ensure_future(client) for client in clients]
        waiting = (await asyncio.wait(tasks, timeout=LONGEST))[1] if tasks else set()
        if not waiting:
            try:
                await asyncio.wait_for(self._mesh.idle(), LONGEST)
            except TimeoutError:
                self._leftovers += [
                    f"still at work: {scope!r}" for hop in self._mesh.hops.values() for scope in hop.scopes
                ]
        for task in (*waiting, *self._extras):
            task.cancel()
        await asyncio.gather(*waiting, *self._extras, return_exceptions=True)
        await asyncio.sleep(1.0)  # what was cancelled on its way crosses the wire
        here = asyncio.current_task()
        self._leftovers += [f"still there: {task!r}" for task in asyncio.all_tasks() if task is not here]

    async def _look_back(self) -> None:
        for number in self._run_ids:
            try:
                await self._look(number)
            except grpc.aio.AioRpcError as error:
                self._leftovers.append(f"run {number} is not to be seen: {error.details()}")
        await asyncio.sleep(self._mesh.policy.limits.keep_finished_runs + 1)
        for tenant in TENANTS:
            listed = await self._stub.ListRuns(
                orchestrator_pb2.ListRunsRequest(), timeout=10.0, metadata=self._mesh.credentials(tenant)
            )
            self._leftovers += [f"not forgotten: {run.run_id} of {tenant}" for run in listed.runs]

    async def _client(self, number: int) -> None:
        script = self._scripts[number]
        await asyncio.sleep(script.arrives_at)
        client = script.client
        self._later(client.looks_after, self._look, number)
        if client.leaving is Leaving.CANCELS_THE_RUN:
            self._later(client.leaves_after, self._cancel_run, number)
        joiner = None
        if client.joined_after is not None:
            joiner = asyncio.ensure_future(self._join(number, client.joined_after, client.joiner_leaves_after))
        leaves_after = client.leaves_after if client.leaving is Leaving.HANGS_UP else None
        await self._call(number, client.timeout, leaves_after, joins=False)
        if joiner is not None:
            await joiner

    async def _join(self, number: int, after: float, leaves_after: float | None) -> None:
        await asyncio.sleep(after)
        if number in self._run_ids:  # else it would start a run of its own
            await self._call(number, None, leaves_after, joins=True)

    async def _call(self, number: int, timeout: float | None, leaves_after: float | None, *, joins: bool) -> None:
        script = self._scripts[number]
        loop = asyncio.get_running_loop()
        sent_at = loop.time()
        left_at: float | None = None
        metadata = self._mesh.credentials(script.tenant)
        if self._scenario.user_agent:
            metadata = (*metadata, ("user-agent", self._scenario.user_agent))
        call = self._stub.Run(
            orchestrator_pb2.RunRequest(prompt=prompt(number), model=script.model, request_id=f"request {number}"),
            timeout=timeout,
            metadata=metadata,
        )

        def leave() -> None:
            nonlocal left_at
            if call.cancel():
                left_at = loop.time()

        leaving = None if leaves_after is None else loop.call_later(leaves_after, leave)
        heard: list[Heard] = []
        ended_at: float | None = None
        code, cause = "OK", ""
        try:
            async for response in call:
                heard.append(Heard(loop.time(), response))
                if response.HasField("started"):
                    self._run_ids[number] = response.started.run_id
            ended_at = loop.time()
        except grpc.aio.AioRpcError as error:
            ended_at, code, cause = loop.time(), error.code().name, cause_of(error)
        except asyncio.CancelledError:
            code = "CANCELLED"
            if left_at is None:
                raise
            ended_at = left_at
        finally:
            if leaving is not None:
                leaving.cancel()
            probe = number >= len(self._scenario.runs)
            timer_at = None if timeout is None else sent_at + timeout
            self._seen.append(
                Seen(number, joins, probe, sent_at, timer_at, left_at, tuple(heard), ended_at, code, cause)
            )

    def _later(self, after: float | None, what: Callable[[int], Awaitable[None]], number: int) -> None:
        """Do something with run `number` after a while, if it has begun by then."""

        async def wait(seconds: float) -> None:
            await asyncio.sleep(seconds)
            if number in self._run_ids:
                with suppress(grpc.aio.AioRpcError) if self._scenario.shutdown else nullcontext():
                    await what(number)

        if after is not None:
            task = asyncio.ensure_future(wait(after))
            self._extras.add(task)
            task.add_done_callback(self._extras.discard)

    async def _cancel_run(self, number: int) -> None:
        run_id = self._run_ids[number]
        self._cancelled.append((run_id, asyncio.get_running_loop().time()))
        await self._stub.CancelRun(
            orchestrator_pb2.CancelRunRequest(run_id=run_id),
            timeout=LONGEST,
            metadata=self._mesh.credentials(self._scripts[number].tenant),
        )

    async def _look(self, number: int) -> None:
        run = await self._stub.GetRun(
            orchestrator_pb2.GetRunRequest(run_id=self._run_ids[number]),
            timeout=LONGEST,
            metadata=self._mesh.credentials(self._scripts[number].tenant),
        )
        self._histories.append((number, tuple(message_from_wire(message) for message in run.messages)))


def _other_faults(scenario: Scenario, seen: list[Seen], cancelled: list[tuple[str, float]]) -> Counter[str]:
    hung_up = sum(one.left_at is not None for one in seen)
    shutdowns = int(scenario.shutdown is not None)
    return Counter({"a client hangs up": hung_up, "a client cancels its run": len(cancelled), "a hop stops": shutdowns})


@cache
def _policy(
    slots: int,
    connections: int,
    places: int,
    most_waiting: int,
    falls_back: bool,
    store: Store | None,
    results: Results | None,
    workers: int,
) -> Policy:
    """The default policy's tiers and limits, with the tenants, models and tools of a simulated world."""
    default = default_policy()
    arguments = {"type": "object", "properties": {"call": {"type": "string"}}, "required": ["call"]}
    http = {
        name: {
            "url": f"http://upstream.example/{name}",
            "method": "GET" if name == "fetch" else "POST",
            "description": f"{name} something",
            "arguments": arguments | {"additionalProperties": False},
            "idempotent": IDEMPOTENT[name],
            "cache_for": store.fetch_for if store is not None and name == "fetch" else 0.0,
        }
        for name in sorted(HTTP_TOOLS)
    }
    model: dict[str, Any] = {"provider": "scripted", "slots": slots}
    if results is not None:
        model |= {"longest_result": results.longest, "shortener": results.shortener}
    return Policy.model_validate(
        {
            "tiers": default.tiers,
            "tenants": {name: {"tier": tier, "api_keys": [f"sha256:{'0' * 64}"]} for name, tier in TENANTS.items()},
            "models": {
                MODELS[0]: model | {"fallback": MODELS[1] if falls_back else None},
                MODELS[1]: model,
                SHORTENER: model,
            },
            "admission": {"runs": places, "most_waiting": most_waiting},
            "tools": {
                "modules": ["tests.simulation.upstreams"],
                "http": http,
                "connections_per_host": connections,
                "workers": workers,
                "calls_per_worker": CALLS_PER_WORKER,
                "cache_bytes": 0,  # unless there is a store of the scenario's own
            },
            "limits": default.limits,
        }
    )


def _probes(scenario: Scenario) -> list[list[RunScript]]:
    """Runs that need all of one model's slots at once, then those that need all of the other's, then all connections, then all
    worker processes, twice; and where results are kept, all connections again, which need none.

    Each at once is another tenant's: what a tenant has beyond its fair part is kept free for those who lately needed more.
    """
    tenants = tuple(TENANTS)
    asks = None if scenario.store is None else 0
    fetch = Turn((Step(call=CallScript("fetch", attempts=(Attempt(takes=0.01),), asks=asks)),))
    talk = Turn((Step(after=0.01),))
    talking = [
        [RunScript(tenant, model=model, turns=(talk,)) for tenant in tenants[: scenario.slots]] for model in MODELS
    ]
    fetching = [
        RunScript(tenant, model=model, turns=(fetch, talk))
        for tenant, model in zip(tenants, MODELS[: scenario.connections], strict=False)
    ]
    grind = Turn((Step(call=CallScript("grind", attempts=(Attempt(takes=0.01),))),))
    grinding = [
        [
            RunScript(tenant, model=model, turns=(grind, talk))
            for tenant, model in zip(some[: scenario.workers], (*MODELS, SHORTENER), strict=False)
        ]
        for some in (tenants, tenants[::-1])  # the second time, idle processes of others must make room
    ]
    return [*talking, fetching, *grinding, *([] if scenario.store is None else [fetching])]


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the defects that are planted out of the log."""
    log = logging.getLogger("deadlinemesh")
    before = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(before)
