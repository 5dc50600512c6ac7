"""A mesh of real processes with a Toxiproxy between every pair, and the scenarios that are played in it.

Two tenants share it. Each has an edge, a model provider and an HTTP tool behind proxies of its own, so that a fault can hit one of
them and spare the other; the llm-proxy and the tool-runner are behind one proxy each, which both need.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import grpc
from tests.chaos.noise import Noise
from tests.chaos.processes import GUARD, Life, Service, below, open_files
from tests.chaos.provider import TOGETHER, Exchange, Outside, Script, ToolUse, Turn
from tests.chaos.toxics import Fault, Proxy, Toxiproxy, toxiproxy
from tests.support.seen import Heard, Seen, cause_of
from tests.support.up import environment

from deadlinemesh.identity.keys import hash_key, new_key
from deadlinemesh.policy import Policy
from deadlinemesh.telemetry import CallEnded, Event
from deadlinemesh.transport.codec import message_from_wire
from deadlinemesh.v1 import common_pb2, orchestrator_pb2, orchestrator_pb2_grpc
from deadlinemesh.vocabulary import Message

__all__ = [
    "HIT",
    "KEEPALIVE",
    "RESERVE",
    "ROOM",
    "ROOT",
    "SHORT",
    "SPARED",
    "TENANTS",
    "Mesh",
    "Plan",
    "Run",
    "Scene",
    "running_mesh",
]

ROOT = str(Path(__file__).resolve().parents[2])

HIT, SPARED = "acme", "bolt"
"""The tenant that a fault hits where it can be aimed at one, and the one that must not notice."""

TENANTS = {HIT: "gold", SPARED: "basic"}

ROOM = 6
"""For how many calls of one tenant each model and each HTTP host has room. No scenario makes more at once: nobody has to wait."""

SLOTS = CONNECTIONS = ROOM + 1
"""Of each model, and of each HTTP host. The last one is kept for a tenant who may yet come."""

KEEPALIVE = 1.0
"""Seconds of silence after which a service asks its peer for a sign of life, and as many until it gives it up."""

RESERVE = 0.1
"""Seconds that are held back so that an answer arrives in time."""

SHORT = 1.0
"""Seconds that a run has, most of the time: the faults last longer."""

AT_REST = 4 * ROOM
"""Files that a service may hold more than at first: connections that are kept for the next call, to two hosts for each tenant."""

AMPLE = 2.5
"""Seconds that a run has whose tool has to be at work for sure before its time is up, however busy the machine is."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A run to be made."""

    tenant: str
    turns: Callable[[int], tuple[Turn, ...]]
    """What its model does, given the run's number."""
    timeout: float | None = SHORT
    """Seconds that its client has; None leaves it to the tier."""


@dataclass(eq=False, slots=True)
class Run:
    """A run that is being made, or has been."""

    number: int
    plan: Plan
    probe: bool
    call: Any = None
    heard: list[Heard] = field(default_factory=list)
    at_work: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a model speaks for it or a tool works for it; and, in any case, when it is over."""
    pids: set[int] = field(default_factory=set)
    """Processes in which a tool of it says to be at work."""
    told: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a tool has told of its processes; and, in any case, when the run is over."""
    left_at: float | None = None
    seen: Seen | None = None

    @property
    def tenant(self) -> str:
        return self.plan.tenant

    @property
    def run_id(self) -> str:
        return next((one.response.started.run_id for one in self.heard if one.response.HasField("started")), "")

    def leave(self) -> None:
        """Hang up."""
        self.left_at = time.monotonic()
        self.call.cancel()


class Mesh:
    """The processes and what is between them."""

    def __init__(self, toxiproxy: Toxiproxy, outside: Outside, folder: Path) -> None:
        self.outside = outside
        self.folder = folder
        self.policy: Policy
        self.services: dict[str, Service] = {}
        self.proxies: dict[str, Proxy] = {}
        self.suffering: set[str] = set()
        """Pairs between which the network is out of order."""
        self.noise = Noise(self._pids)
        self._toxiproxy = toxiproxy
        self._keys = {tenant: new_key(tenant) for tenant in TENANTS}
        self._numbers = count(1)

    async def start(self, stack: AsyncExitStack) -> None:
        """Start everything, to be ended with `stack`."""
        for tenant in TENANTS:
            for end in ("provider", "upstream"):
                await self._add_proxy(f"{end} of {tenant}", self.outside.port)
        policy = self._policy()
        self.policy = Policy.model_validate(policy)
        (self.folder / "policy.yaml").write_text(json.dumps(policy))  # JSON is YAML
        common = environment(self.folder / "up.json") | {
            "DMESH_LISTEN": "127.0.0.1:0",
            "DMESH_POLICY_FILE": str(self.folder / "policy.yaml"),
            "DMESH_MESH_TOKEN": "chaos",
            "DMESH_KEEPALIVE_SECONDS": str(KEEPALIVE),
            "DMESH_DRAIN_SECONDS": "5",
            "DMESH_LOG_LEVEL": "WARNING",
        }
        common["PYTHONPATH"] = os.pathsep.join((common["PYTHONPATH"], ROOT))
        for name in ("llm-proxy", "tool-runner"):
            self.services[name] = Service(name, self.folder, common)
            stack.push_async_callback(self.services[name].end)
        await asyncio.gather(*(service.start() for service in self.services.values()))
        for name, service in self.services.items():
            proxy = await self._add_proxy(name, service.life.port)
            common = common | {f"DMESH_{name.upper().replace('-', '_')}": proxy.address}
        edge = self.services["orchestrator"] = Service("orchestrator", self.folder, common)
        stack.push_async_callback(edge.end)
        await edge.start()
        for tenant in TENANTS:
            await self._add_proxy(f"edge of {tenant}", edge.life.port)

    async def revive(self, name: str) -> None:
        """Start a service again that was killed."""
        life = await self.services[name].start()
        for proxy in self._before(name):
            await proxy.lead_to(life.port)

    async def heal(self) -> None:
        """Take every fault away, and start again what is dead."""
        self.thaw()
        for pair in sorted(self.suffering):
            await self.proxies[pair].lead_to(self.proxies[pair].behind)
        self.suffering.clear()
        dead = [name for name, service in self.services.items() if service.life.killed_at is not None]
        await asyncio.gather(*(self.revive(name) for name in dead))

    def thaw(self) -> None:
        """Let go on what was stopped."""
        for service in self.services.values():
            if service.is_frozen:
                service.thaw()

    def lives(self) -> Iterable[Life]:
        """Every life of every service."""
        return [life for service in self.services.values() for life in service.lives]

    def plan_number(self) -> int:
        return next(self._numbers)

    def channel(self, tenant: str) -> grpc.aio.Channel:
        """A connection of its own to the tenant's edge."""
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 500)]
        return grpc.aio.insecure_channel(self.proxies[f"edge of {tenant}"].address, options=options)

    def credentials(self, tenant: str) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self._keys[tenant]}"),)

    def key(self, tenant: str) -> str:
        return self._keys[tenant]

    def _pids(self) -> list[int]:
        mine = [service.life.process.pid for service in self.services.values() if service.lives]
        return [os.getpid(), self._toxiproxy.pid, *mine]

    def _before(self, name: str) -> list[Proxy]:
        return [
            proxy
            for title, proxy in self.proxies.items()
            if title == name or (name == "orchestrator" and title.startswith("edge"))
        ]

    async def _add_proxy(self, name: str, port: int) -> Proxy:
        proxy = self.proxies[name] = await self._toxiproxy.proxy(name.replace(" ", "-"), port)
        return proxy

    def _policy(self) -> dict[str, Any]:
        tiers = {
            "gold": {"run_budget": "10s", "iterations": 4, "tool_retries": 2, "model_queue": "priority", "weight": 4},
            "basic": {"run_budget": "10s", "iterations": 3},
        }
        tenants = {
            tenant: {"tier": tier, "api_keys": [hash_key(self._keys[tenant])], "models": [f"{tenant}-model"]}
            for tenant, tier in TENANTS.items()
        }
        models = {
            f"{tenant}-model": {
                "provider": "openai",
                "base_url": f"http://{self.proxies[f'provider of {tenant}'].address}/v1",
                "model": "scripted",
                "api_key_env": "",
                "slots": SLOTS,
            }
            for tenant in TENANTS
        }
        integer = {"type": "integer"}
        arguments = {
            "type": "object",
            "properties": {"run": integer, "seconds": {"type": ["number", "string"]}},
            "required": ["run", "seconds"],
        }
        http = {
            f"fetch_{tenant}": {
                "url": f"http://{self.proxies[f'upstream of {tenant}'].address}/tool/{{run}}/{{seconds}}",
                "description": "Fetch something.",
                "arguments": arguments,
                "idempotent": True,
                "internal": True,
            }
            for tenant in TENANTS
        }
        return {
            "tiers": tiers,
            "tenants": tenants,
            "models": models,
            "tools": {"modules": ["tests.chaos.tools"], "http": http, "connections_per_host": CONNECTIONS},
            "limits": {"response_reserve": RESERVE},
            "instructions": "",
        }


class Scene:
    """One scenario: runs, faults, and all that was seen of it when it is over."""

    def __init__(self, mesh: Mesh, *, hit: Iterable[str] = TENANTS, unreachable: Iterable[str] = ()) -> None:
        self.mesh = mesh
        self.hit = frozenset(hit)
        """Tenants whose runs may suffer. All others' must not notice anything."""
        self.unreachable = frozenset(unreachable)
        """Tenants whom an answer may not reach: the way to them, or the one who writes the answers, is broken."""
        self.began_at = time.monotonic()
        self.seconds = 0.0
        """How long it took."""
        self.runs: list[Run] = []
        self.faults: list[str] = []
        self.dirty: set[str] = set()
        """Proxies that suffer: what is behind them may hear late of an end, or never."""
        self.histories: list[tuple[Run, tuple[Message, ...]]] = []
        self.leftovers: list[str] = []
        """What was there when nothing should have been."""
        self.died: dict[int, float] = {}
        """When each of the processes died that tools told of."""
        self._tasks: list[asyncio.Task[None]] = []
        self._channels = {tenant: mesh.channel(tenant) for tenant in TENANTS}
        self._log_lengths = {name: len(service.log) for name, service in mesh.services.items()}

    def begin(self, *plans: Plan, probe: bool = False) -> list[Run]:
        """Start runs, all at once."""
        runs = [Run(self.mesh.plan_number(), plan, probe) for plan in plans]
        self.runs += runs
        self._tasks += [asyncio.ensure_future(self._watch(run)) for run in runs]
        return runs

    async def at_work(self) -> None:
        """Return when every run is at work, or over."""
        await asyncio.wait_for(asyncio.gather(*(run.at_work.wait() for run in self.runs)), GUARD)

    async def suffer(self, pair: str, name: str, fault: Fault) -> None:
        """Let the network between a pair go wrong."""
        self.faults.append(f"{pair}: {name}")
        self.dirty.add(pair)
        self.mesh.suffering.add(pair)
        await self.mesh.proxies[pair].suffer(fault)

    async def kill(self, service: str) -> None:
        """SIGKILL."""
        self.faults.append(f"{service}: killed")
        await self.mesh.services[service].kill()

    def freeze(self, service: str) -> None:
        """SIGSTOP."""
        self.faults.append(f"{service}: stopped")
        self.mesh.services[service].freeze()

    async def answered(self) -> None:
        """Return when no client waits any more."""
        await asyncio.wait_for(asyncio.gather(*self._tasks), GUARD)

    async def settled(self, *, but: str = "none") -> None:
        """Return when no service, but one, serves anything any more."""
        await self._settled(lambda: [left for left in self._served() if not left.startswith(but)])

    async def over(self) -> None:
        """Wait for every client, take the faults away, see whether the mesh is empty, and whether it works as before."""
        await self.answered()
        self.mesh.thaw()
        await self.settled()  # also while it is still out of order
        await self.mesh.heal()
        await self._settled(lambda: [*self._served(), *self._done_outside()])
        await self._recovered()
        await self._look_back()
        last = await self._probe()
        await self._settled(lambda: [*self._served(), *self._untold(last), *self._done_outside()])
        self._look_at_the_kernel()
        self.seconds = time.monotonic() - self.began_at
        for channel in self._channels.values():
            await channel.close()

    @property
    def events(self) -> list[tuple[Life, Event]]:
        """What the services have reported of the runs of this scenario."""
        mine = {run.run_id for run in self.runs} - {""}
        return [
            (life, event)
            for life in self.mesh.lives()
            for event in life.read()
            if getattr(event, "run_id", "") in mine or getattr(event, "started_at", 0.0) >= self.began_at
        ]

    @property
    def exchanges(self) -> list[Exchange]:
        """What the world outside did for the runs of this scenario."""
        mine = {run.number for run in self.runs}
        return [one for one in self.mesh.outside.exchanges if one.run in mine]

    @property
    def log(self) -> dict[str, str]:
        """What each service has logged since the scenario began."""
        return {name: service.log[self._log_lengths[name] :] for name, service in self.mesh.services.items()}

    def join(self, run: Run) -> Run:
        """Count a run as one of the scenario's that somebody else makes."""
        self.runs.append(run)
        return run

    def hear(self, run: Run, response: orchestrator_pb2.RunResponse) -> None:
        """Note what a client is told."""
        run.heard.append(Heard(time.monotonic(), response))
        if response.HasField("text") or response.phase_changed.phase == common_pb2.PHASE_TOOL_CALL:
            run.at_work.set()
        _, _, pids = response.tool_call_progress.message.partition("pids ")
        for pid in map(int, pids.split()):
            if pid not in run.pids:
                run.pids.add(pid)
                run.told.set()
                self._mourn(pid)

    def _mourn(self, pid: int) -> None:
        """Note when the process dies."""
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            self.died[pid] = time.monotonic()
            return
        loop = asyncio.get_running_loop()

        def died() -> None:
            self.died[pid] = time.monotonic()
            loop.remove_reader(handle)
            os.close(handle)

        loop.add_reader(handle, died)

    async def _watch(self, run: Run) -> None:
        mesh, plan = self.mesh, run.plan
        stub = orchestrator_pb2_grpc.OrchestratorServiceStub(self._channels[plan.tenant])
        request = orchestrator_pb2.RunRequest(prompt=Script(run.number, plan.turns(run.number)).prompt())
        sent_at = time.monotonic()
        run.call = stub.Run(request, timeout=plan.timeout, metadata=mesh.credentials(plan.tenant))
        code, cause = "OK", ""
        try:
            async for response in run.call:
                self.hear(run, response)
        except grpc.aio.AioRpcError as error:
            code, cause = error.code().name, cause_of(error)
        except asyncio.CancelledError:
            code = "CANCELLED"
            if run.left_at is None:
                raise
        finally:
            run.call.cancel()
            run.at_work.set()
            run.told.set()
        timer_at = None if plan.timeout is None else sent_at + plan.timeout
        run.seen = Seen(
            *(run.number, False, run.probe, sent_at, timer_at, run.left_at, tuple(run.heard)),
            *(time.monotonic(), code, cause),
        )

    async def _settled(self, left: Callable[[], list[str]]) -> None:
        """Return when nothing is `left` at work for anybody, or tell what is."""
        until = time.monotonic() + GUARD / 2
        while found := left():
            if time.monotonic() > until:
                self.leftovers += found
                return
            await asyncio.sleep(0.02)

    def _served(self) -> list[str]:
        """What the services still do, as far as they have told."""
        found = []
        for life in self.mesh.lives():
            life.read()
            found += [f"{life.service} still serves {call.method} of {call.run_id}" for call in life.open_calls()]
        return found

    def _untold(self, last: list[Run]) -> list[str]:
        """Services that have yet to tell of the end of the last runs. Each tells in order, when it has time to."""
        found = []
        for service in self.mesh.services.values():
            ended = {event.run_id for event in service.life.events if isinstance(event, CallEnded)}
            found += [f"{service.name} has told nothing of {run.run_id}" for run in last if run.run_id not in ended]
        return found

    def _done_outside(self) -> list[str]:
        return [f"the {one.kind} of run {one.run} is still at work" for one in self.mesh.outside.at_work()]

    async def _recovered(self) -> None:
        """Return when both tenants are served again, tools and all, as they must be: connections may have to be made anew."""
        for tenant in TENANTS:
            until = time.monotonic() + GUARD
            while True:
                (run,) = self.begin(Plan(tenant, partial(_fetches, tenant)), probe=True)
                await self.answered()
                assert run.seen is not None
                fetched = any(one.response.tool_call_finished.status == common_pb2.TOOL_STATUS_OK for one in run.heard)
                if fetched and run.seen.finished is not None and not run.seen.finished.partial:
                    break
                self.runs.remove(run)  # whether it came too early is not the question
                if time.monotonic() > until:
                    self.leftovers.append(f"{tenant} is not served any more: {run.seen}")
                    return

    async def _look_back(self) -> None:
        edge = self.mesh.services["orchestrator"]
        for run in self.runs:
            if not run.run_id or any(life.killed_at and life.killed_at > self.began_at for life in edge.lives):
                continue
            stub: Any = orchestrator_pb2_grpc.OrchestratorServiceStub(self._channels[run.tenant])
            metadata = self.mesh.credentials(run.tenant)
            request = orchestrator_pb2.GetRunRequest(run_id=run.run_id)
            looked = await stub.GetRun(request, timeout=GUARD, metadata=metadata)
            self.histories.append((run, tuple(message_from_wire(message) for message in looked.messages)))
            if looked.run.state != orchestrator_pb2.RUN_STATE_FINISHED:
                self.leftovers.append(f"run {run.number} has not finished")

    def _look_at_the_kernel(self) -> None:
        """See that nothing is left behind of which no service knows any more."""
        for name, service in self.mesh.services.items():
            life = service.life
            files, processes = open_files(life.process.pid), below(life.process.pid)
            life.files_at_rest = life.files_at_rest or files
            if files > life.files_at_rest + AT_REST:
                self.leftovers.append(f"{name} holds {files} files; it held {life.files_at_rest} at first")
            most = 1 + self.mesh.policy.tools.workers if name == "tool-runner" else 0
            if processes > most:
                self.leftovers.append(f"{processes} processes are below {name}; there may be {most}")

    async def _probe(self) -> list[Run]:
        """As many runs at once as there are slots and connections: none may have been lost."""

        together = f"{ROOM}-{self.mesh.plan_number()}"

        def turns(run: int) -> tuple[Turn, ...]:
            use = ToolUse(f"fetch_{HIT}", {"run": run, "seconds": f"{TOGETHER}{together}"})
            return (Turn(1, together=together, tools=(use,)), Turn(1))

        runs = self.begin(*(Plan(HIT, turns, None) for _ in range(ROOM)), probe=True)
        await self.answered()
        return runs


def _fetches(tenant: str, run: int) -> tuple[Turn, ...]:
    return (Turn(1, tools=(ToolUse(f"fetch_{tenant}", {"run": run, "seconds": 0.01}),)), Turn(1))


@asynccontextmanager
async def running_mesh(program: str, folder: Path) -> AsyncIterator[Mesh]:
    """A mesh for the block; nothing of it is left afterwards."""
    async with AsyncExitStack() as stack:
        outside = Outside()
        await outside.start()
        stack.push_async_callback(outside.stop)
        mesh = Mesh(await stack.enter_async_context(toxiproxy(program, folder)), outside, folder)
        await mesh.start(stack)
        stack.enter_context(mesh.noise)
        yield mesh
