"""`dmesh up`: starts a mesh, prints how to use it, and keeps it up until a signal stops it."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from deadlinemesh.hosting.settings import CommandSettings
from deadlinemesh.local import state as states
from deadlinemesh.local.machine import RunningMesh, UpOptions, child_environment, running_mesh, tied
from deadlinemesh.local.process import ChildProcess
from deadlinemesh.local.state import MeshState
from deadlinemesh.local.supervisor import ProgramFailed
from deadlinemesh.policy import GoOver, Policy, PolicyError, PolicyFile, Problem
from deadlinemesh.telemetry.logs import Lines
from deadlinemesh.views.output import Exit, complain
from deadlinemesh.vocabulary.hops import EDGE, GRPC_SERVICES, LLM_PROXY, ORCHESTRATOR

__all__ = ["up"]


async def up(policy_file: Path | None, options: UpOptions, settings: CommandSettings, *, as_json: bool) -> Exit:
    """Run a mesh by the policy in `policy_file`, then drain it.

    The mesh follows changes of the file. It runs until SIGINT, SIGTERM, or SIGHUP unless that is
    ignored. A second signal ends it at once. Raises PolicyError or WrongUsage if it cannot be
    started.
    """
    file = None
    if policy_file is not None:
        file = PolicyFile(policy_file)
        options = replace(options, policy=file.load())
        await _refuse_what_no_tool_runner_has(policy_file)
    told, hurried, telling = asyncio.Event(), asyncio.Event(), _Telling()

    def on_signal() -> None:
        if told.is_set():
            hurried.set()
        else:
            told.set()
            telling.say("draining: what runs may finish; the same again ends it at once")

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Under nohup, the mesh keeps running when the terminal closes.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            loop.add_signal_handler(number, on_signal)
    show = _print_json if as_json else _print_panel
    kept = asyncio.ensure_future(_keep(file, options, settings, show, hurried, telling))
    stopping = asyncio.ensure_future(told.wait())
    await asyncio.wait({kept, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not kept.done():
        kept.cancel()
        await asyncio.wait({kept})
    telling.close()
    if kept.cancelled():
        return Exit.ANSWERED
    try:
        kept.result()
    except ProgramFailed as failed:
        complain(str(failed))
        return Exit.FAILED
    return Exit.ANSWERED


async def _refuse_what_no_tool_runner_has(policy_file: Path) -> None:
    """Raise PolicyError with every reason why tool-runners would not start here.

    A child process checks, as a tool-runner would: it imports modules from the same places.
    Everything that these imports start ends with the child.
    """
    said: list[bytes] = []

    async def listen() -> None:
        while piece := await process.stdout.read(65536):
            said.append(piece)

    command = tied("deadlinemesh.cli", "policy", "check", "--json", "--", str(policy_file))
    process = await ChildProcess.start(command, child_environment({}), stderr=None)
    process.read_by(listen())
    try:
        await process.ended()
    finally:
        process.send_signal(signal.SIGKILL)
    try:
        found = json.loads(b"".join(said))
    except ValueError:  # a module has ended the process: the tool-runner's log will show it
        return
    problems = [*found.get("problems", ()), *(one for one in found["warnings"] if one["path"].startswith("tools."))]
    if problems:
        raise PolicyError(Problem(**one) for one in problems)


async def _keep(
    file: PolicyFile | None,
    options: UpOptions,
    settings: CommandSettings,
    show: Callable[[MeshState], None],
    hurried: asyncio.Event,
    telling: _Telling,
) -> None:
    path = settings.state_path
    async with running_mesh(options, settings, telling.say, telling.pass_on) as mesh:
        killer = asyncio.ensure_future(_kill_when(hurried, mesh))
        following: asyncio.Future[None] | None = None
        _remember(mesh.state, path, telling)
        try:
            show(mesh.state)
            if file is not None:
                mesh.tell(file.status)
                following = asyncio.ensure_future(file.follow(partial(_prepared, mesh, path, telling), mesh.tell))
            await mesh.supervisor.keep(lambda: _remember(mesh.state, path, telling))
        finally:
            if following is not None:
                following.cancel()
            states.forget(path)
    killer.cancel()


def _prepared(mesh: RunningMesh, path: Path, telling: _Telling, policy: Policy) -> GoOver:
    ready = mesh.prepared(policy)

    def go_over() -> None:
        before = mesh.state.tenants
        ready()
        state = mesh.state
        _remember(state, path, telling)
        telling.say("the policy file has changed, and the mesh goes over to it")
        for name, tenant in state.tenants.items():
            if name not in before:
                telling.say(f"{name} is new, {tenant.tier}; its API key: {tenant.api_key}")

    return go_over


def _remember(state: MeshState, path: Path, telling: _Telling) -> None:
    try:
        states.write(state, path)
    except OSError as error:
        telling.say(f"`dmesh run` will need --address and --key: {path} cannot be written: {error.strerror}")


async def _kill_when(hurried: asyncio.Event, mesh: RunningMesh) -> None:
    await hurried.wait()
    mesh.supervisor.kill()


class _Telling:
    """Messages for people on standard error.

    Writing never waits for a reader. Without a reader, the mesh goes on.
    """

    def __init__(self) -> None:
        self._lines = Lines(sys.stderr)
        self.close = self._lines.close

    def say(self, what: str) -> None:
        """Print a message about the mesh."""
        self._lines.put(f"dmesh: {what}")

    def pass_on(self, name: str, line: str) -> None:
        """Print a line from the log of one of the mesh's programs."""
        self._lines.put(f"{name} | {line}")


def _print_json(state: MeshState) -> None:
    print(state.as_json(), flush=True)


def _print_panel(state: MeshState) -> None:
    console = Console(highlight=False)
    console.print(
        Panel(Group(_addresses(state), Text(), _tenants(state)), title="Deadline Mesh is up", title_align="left")
    )
    for title, lines in _examples(state).items():
        console.print(Text(f"\n{title}", style="bold"))
        for line in lines:  # never wrapped, so that users can paste them
            console.print(Text(f"  {line}"), soft_wrap=True)
    console.print(Text("\nCtrl-C drains and stops; once more stops at once.", style="dim"))


def _addresses(state: MeshState) -> Table:
    table = Table.grid(padding=(0, 2))
    outermost = EDGE if EDGE in state.processes else ORCHESTRATOR
    table.add_row(Text(outermost, style="bold"), state.address, Text("for clients", style="dim"))
    for name, address in state.inner.items():
        table.add_row(Text(name, style="bold"), address, Text("internal: wants the mesh token", style="dim"))
    if state.demo_world:
        address = state.demo_world.removeprefix("http://")
        table.add_row(Text("demo world", style="bold"), address, Text("the upstreams of its HTTP tools", style="dim"))
    table.add_row(
        Text("models", style="bold"), Text(", ".join(state.models)), Text("the first is the default", style="dim")
    )
    return table


def _tenants(state: MeshState) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_row(*(Text(title, style="dim") for title in ("tenant", "tier", "API key")))
    for name, tenant in state.tenants.items():
        table.add_row(Text(name, style="bold"), tenant.tier, Text(tenant.api_key, overflow="fold"))
    return table


def _examples(state: MeshState) -> dict[str, list[str]]:
    name, tenant = next(iter(state.tenants.items()))
    proxy = state.inner[LLM_PROXY]
    key = f"-H 'authorization: Bearer {tenant.api_key}'"
    identity = f"token={state.mesh_token};tenant={name};tier={tenant.tier};run=by-hand;trace="
    inside = f"-H 'mesh-identity: {identity}'"
    service = GRPC_SERVICES[ORCHESTRATOR]
    return {
        "Run an agent": [
            f"""dmesh run 'Look up the customer "northwind" and calculate 1299 * 12' --tenant {name} --deadline 20s""",
            f'dmesh run "Run the long task for 20 seconds" --tenant {name} --deadline 2s',
        ],
        "Inspect it with grpcurl": [
            f"grpcurl -plaintext {state.address} list",
            f"grpcurl -plaintext {state.address} describe {service}",
            f"grpcurl -plaintext {state.address} grpc.health.v1.Health/Check",
            f"""grpcurl -plaintext -max-time 20 {key} -d '{{"prompt": "hello"}}' {state.address} {service}/Run""",
            f"grpcurl -plaintext -max-time 5 {inside} {proxy} {GRPC_SERVICES[LLM_PROXY]}/ListModels",
        ],
        "For the example clients": [f"export DMESH_ADDR={state.address} DMESH_API_KEY={tenant.api_key}"],
    }
