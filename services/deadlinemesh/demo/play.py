"""`dmesh demo`: the article's incident, first without the mesh and then with it.

It needs no key and no network. Three tenants share their upstreams. B's data provider turns slow
while several runs of B wait for it. Then A and C send requests to other upstreams. A platform as it
is commonly written serves them first, then the mesh, from the same seeds.
"""

from __future__ import annotations

import asyncio
import io
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from deadlinemesh.demo.lanes import Act, Lane, drawn, letter
from deadlinemesh.demo.naive import NaivePlatform
from deadlinemesh.demo.scenes import AGGRESSOR, CALM, POOL, SCENES, SECONDS, Scene, TurningWorld, incident
from deadlinemesh.demo_world import serving
from deadlinemesh.errors import MeshError, WrongUsage
from deadlinemesh.hosting.settings import CommandSettings
from deadlinemesh.local.machine import UpOptions, running_mesh
from deadlinemesh.local.supervisor import ProgramFailed
from deadlinemesh.local.tailoring import DEMO_BASE
from deadlinemesh.policy import Policy, default_policy, with_http_base
from deadlinemesh.v1 import orchestrator_pb2
from deadlinemesh.views.live import can_draw
from deadlinemesh.views.output import Exit, complain, error_json, run_json
from deadlinemesh.views.run import Order, Target, print_finished, run_to_end
from deadlinemesh.views.waterfall import Timeline

__all__ = ["demo", "inside_budget"]

NAIVE = "naive: one connection pool, a timeout for each call, no deadline for the run"
MESHED = "meshed: one deadline for each run, a share of every pool for each tenant"

GONE_AFTER = 0.3
"""Seconds from the last deadline to the count of open requests."""

_PLAIN_WIDTH, _WIDEST = 120, 140


async def demo(seed: int, *, as_json: bool, save: Path | None = None) -> Exit:
    """Play both acts on a separate mesh and world, and show each tenant's time.

    The picture is saved to `save`, if given. Raises WrongUsage if that is not possible.
    """
    if save is not None and (save.suffix != ".svg" or not save.parent.is_dir()):
        raise WrongUsage(f"--save {save}: write the name of an .svg file in a folder that exists")
    console = Console(highlight=False)
    stage = _Stage(console, quiet=as_json)
    naive, meshed = Act(NAIVE), Act(MESHED)
    try:
        async with _world(seed) as (world, policy):
            with stage.drawing():
                stage.tell("B's runs wait for a provider that turns slow; then A and C come. First the naive way …")
                await _naively(stage.begins(naive), world, policy)
                stage.tell("starting three services for the same again …")
                ended = await _through_the_mesh(stage, meshed, world, policy, seed)
    except ProgramFailed as failed:
        complain(str(failed))
        return Exit.FAILED
    holds = all(inside_budget(timeline) for timeline in ended)
    if save is not None:
        _save(save, naive, meshed)
    if as_json:
        runs = [_told(scene, timeline) for scene, timeline in zip(SCENES, ended, strict=True)]
        acts = {"naive": naive.as_json(), "meshed": meshed.as_json()}
        print(json.dumps({"runs": runs, "holds": holds, **acts}, ensure_ascii=False))
    else:
        _show(console, ended, holds)
        console.print(_moral(naive, meshed), soft_wrap=True)
        if save is not None:
            console.print(Text(f"The picture is in {save}.", style="dim"))
    return Exit.ANSWERED if holds else Exit.FAILED


@asynccontextmanager
async def _world(seed: int) -> AsyncIterator[tuple[TurningWorld, Policy]]:
    """The upstreams of both acts, and a policy with their addresses."""
    world = TurningWorld(seed=seed)
    async with serving(world) as url:
        policy = with_http_base(default_policy(), DEMO_BASE, url)
        models = {name: model.model_copy(update={"seed": seed}) for name, model in policy.models.items()}
        tools = policy.tools.model_copy(update={"connections_per_host": POOL})
        yield world, policy.model_copy(update={"models": models, "tools": tools})


class _Watched:
    """An act on its time axis."""

    def __init__(self, act: Act) -> None:
        self.act = act
        self._began_at: float | None = None

    def elapsed(self) -> float:
        """Seconds since the provider turned slow."""
        return 0.0 if self._began_at is None else time.monotonic() - self._began_at

    async def play(self, world: TurningWorld, one: Callable[[Scene, Lane], Any]) -> list[Any]:
        """Turn the provider slow and begin every run at its time.

        Returns the results of the runs of SCENES when the act is over.
        """
        world.slow, self._began_at = True, time.monotonic()
        scenes = incident()
        lanes = [Lane(scene.tenant, scene.label, scene.order.deadline or 0.0, scene.at) for scene in scenes]
        self.act.lanes = sorted(lanes, key=lambda lane: lane.tenant)

        async def at_its_time(scene: Scene, lane: Lane) -> Any:
            await asyncio.sleep(scene.at - self.elapsed())
            lane.starts_at = self.elapsed()
            return await one(scene, lane)

        ended = await asyncio.gather(*(at_its_time(scene, lane) for scene, lane in zip(scenes, lanes, strict=True)))
        last = max(lane.starts_at + lane.granted for lane in lanes)
        await asyncio.sleep(last + GONE_AFTER - self.elapsed())
        self.act.open_requests = world.open_requests()
        await asyncio.sleep(SECONDS - self.elapsed())
        world.slow = False
        for lane in lanes:
            lane.leave(self.elapsed() - lane.starts_at)
        return list(ended[: len(SCENES)])


async def _naively(watched: _Watched, world: TurningWorld, policy: Policy) -> None:
    platform = NaivePlatform(policy, POOL, watched.elapsed)
    left: list[asyncio.Task[str]] = []

    async def one(scene: Scene, lane: Lane) -> None:
        task = asyncio.create_task(platform.run(lane, scene.order.prompt))
        left.append(task)
        await asyncio.wait({task}, timeout=lane.granted)  # then the user leaves, the platform goes on
        if task.done():
            task.result()
            lane.answered_at = watched.elapsed() - lane.starts_at

    try:
        await asyncio.gather(*(platform.run(Lane(tenant, "", 0.0), prompt) for tenant, prompt in CALM.items()))
        await watched.play(world, one)
    finally:
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await platform.aclose()


async def _through_the_mesh(
    stage: _Stage, act: Act, world: TurningWorld, policy: Policy, seed: int
) -> list[Timeline | MeshError]:
    options = UpOptions(policy, port=0, demo_world=False, seed=seed)
    async with running_mesh(options, CommandSettings(), lambda what: complain(what), _pass_on) as mesh:
        state = mesh.state

        def target(tenant: str) -> Target:
            return Target(state.address, state.tenants[tenant].api_key)

        async def one(scene: Scene, lane: Lane) -> Timeline | MeshError:
            try:
                return await run_to_end(target(scene.tenant), scene.order, _LaneView(lane))
            except MeshError as error:
                lane.failed = error.reason.lower()
                return error

        await asyncio.gather(*(run_to_end(target(tenant), Order(prompt)) for tenant, prompt in CALM.items()))
        return await stage.begins(act).play(world, one)


_KINDS = {"tool_call": "tool", "tool_queue": "wait", "llm_queue": "wait"}
"""The kind of a lane's piece for a phase. For every other phase it is `model`."""


class _LaneView:
    """Draws a run of the mesh into its lane, from the phases that the run reports."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None

    def show(self, event: orchestrator_pb2.RunResponse, timeline: Timeline) -> None:
        at = event.elapsed_us / 1e6
        if event.HasField("finished"):
            finished = event.finished
            self._lane.leave(at)
            if finished.answer:
                self._lane.answered_at = at
            self._lane.partial = finished.partial
        else:
            kind = _KINDS.get(timeline.phase, "model")
            # The mesh does not tell the holder of a slot. Here it can only be the tenant that asks
            # for more slots than there are.
            self._lane.enter(at, kind, AGGRESSOR if kind == "wait" else "")


class _Stage:
    """Shows the acts: live on a terminal, elsewhere printed when they are over."""

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self._console = console
        self._quiet = quiet
        self._live = console.is_terminal and not quiet
        self._acts: list[_Watched] = []
        self._says = ""

    def drawing(self) -> AbstractContextManager[Any]:
        """Draw during the block."""
        if self._live:
            return Live(console=self._console, refresh_per_second=10, get_renderable=self._render)
        return nullcontext() if self._quiet else _Then(lambda: self._console.print(self._render(), soft_wrap=True))

    def begins(self, act: Act) -> _Watched:
        """Start to show the next act."""
        watched = _Watched(act)
        self._acts.append(watched)
        return watched

    def tell(self, what: str) -> None:
        """Show the current step."""
        self._says = what
        if not self._quiet and not self._live:
            self._console.print(Text(what, style="dim"), soft_wrap=True)

    def _render(self) -> RenderableType:
        width = min(self._console.width, _WIDEST) if self._live else _PLAIN_WIDTH
        parts: list[RenderableType] = []
        for watched in self._acts:
            parts += drawn(watched.act, SECONDS, width, now=watched.elapsed(), ascii_only=not can_draw(self._console))
            parts.append(Text())
        if self._live and len(self._acts) < 2:
            parts.append(Text(self._says, style="dim"))
        return Group(*parts)


class _Then(AbstractContextManager[None]):
    """Calls a function at the end of a block, unless the block raised."""

    def __init__(self, what: Callable[[], None]) -> None:
        self._what = what

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self._what()


def _save(path: Path, *acts: Act) -> None:
    """Save both acts as an SVG picture."""
    canvas = Console(record=True, file=io.StringIO(), width=_WIDEST, force_terminal=True, color_system="truecolor")
    for act in acts:
        canvas.print(Group(*drawn(act, SECONDS, _WIDEST), Text()))
    canvas.print(_moral(*acts))
    canvas.save_svg(str(path), title="whose budget was eaten by whom")


def inside_budget(ended: Timeline | MeshError) -> bool:
    """True if a run gave a whole or partial answer before its deadline."""
    if isinstance(ended, MeshError) or ended.finished is None:
        return False
    finished = ended.finished
    answered = finished.outcome in (
        orchestrator_pb2.OUTCOME_COMPLETED,
        orchestrator_pb2.OUTCOME_DEADLINE_SPENT,
    )
    return answered and bool(finished.answer) and finished.ledger.elapsed_us <= finished.ledger.granted_us


def _told(scene: Scene, ended: Timeline | MeshError) -> dict[str, Any]:
    about = {"tenant": scene.tenant, "prompt": scene.order.prompt, "inside_budget": inside_budget(ended)}
    return {**about, **(error_json(ended) if isinstance(ended, MeshError) else run_json(ended))}


def _show(console: Console, ended: list[Timeline | MeshError], holds: bool) -> None:
    for scene, run in zip(SCENES, ended, strict=True):
        if isinstance(run, MeshError):
            console.print(Text(f"\n{scene.tenant}: {run.reason}: {run}", style="bold red"))
        else:
            console.rule(characters="─" if console.encoding.startswith("utf") else "-", style="dim")
            print_finished(run, console, title=f"{scene.tenant}, meshed: {scene.about}")
    broken = [scene.tenant for scene, run in zip(SCENES, ended, strict=True) if not inside_budget(run)]
    console.print()
    if holds:
        console.print(Text("Through the mesh every tenant was answered inside its own budget.", style="bold green"))
    else:
        console.print(Text(f"Not answered inside its budget: {', '.join(broken)}.", style="bold red"))


def _moral(*acts: Act) -> Text:
    """The time that the aggressor took from each other tenant, and the requests left, per act."""
    lines = []
    for act in acts:
        eaten = ", ".join(f"{seconds:.1f} s of {letter(tenant)}'s" for tenant, seconds in act.eaten(AGGRESSOR).items())
        left = f"{act.open_requests} requests were at work after all deadlines"
        lines.append(f"{act.title.partition(':')[0]}: {letter(AGGRESSOR)} ate {eaten}; {left}.")
    return Text("\n".join(lines))


def _pass_on(name: str, line: str) -> None:
    print(f"{name} | {line}", file=sys.stderr, flush=True)
