"""`dmesh demo`: the article's three tenants at once, each inside its own budget. No key and no network are needed."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from deadlinemesh.cli.machine import UpOptions, running_mesh
from deadlinemesh.cli.output import Exit, complain, error_json, run_json
from deadlinemesh.cli.running import Order, Target, print_finished, run_to_end
from deadlinemesh.cli.settings import CommandSettings
from deadlinemesh.cli.supervisor import ProgramFailed
from deadlinemesh.cli.waterfall import Timeline
from deadlinemesh.errors import MeshError
from deadlinemesh.v1 import orchestrator_pb2

__all__ = ["demo"]


@dataclass(frozen=True, slots=True)
class Scene:
    """One tenant's run."""

    tenant: str
    about: str
    order: Order


SCENES = (
    Scene(
        "acme",
        "CRM, vector search and arithmetic at once",
        Order(
            'Look up the customer "northwind", search the knowledge base for "refund policy", and calculate 1299 * 12',
            deadline=20.0,
        ),
    ),
    Scene(
        "bolt",
        "a third-party data provider whose p99 is 12 s",
        Order("Get the market quotes for BRWF and ACME", deadline=20.0),
    ),
    Scene(
        "cora",
        "an internal service that fans out to five",
        Order("Build the portfolio report on account PF-48213", deadline=20.0),
    ),
)


async def demo(seed: int, *, as_json: bool) -> Exit:
    """Start a mesh of its own, play every scene in parallel, and show where each one's time went."""
    console = Console(highlight=False)
    tell: Callable[[str], None] = _nothing if as_json else lambda what: console.print(Text(what, style="dim"))
    tell("starting three services and a world of upstreams …")
    options = UpOptions(port=0, seed=seed)
    try:
        async with running_mesh(options, CommandSettings(), lambda what: complain(what), _pass_on) as mesh:
            state = mesh.state
            for scene in SCENES:
                tell(f"  {scene.tenant} ({state.tenants[scene.tenant].tier}): {scene.about}")
            tell("three tenants run at once, each with 20 s …")
            ended = await asyncio.gather(
                *(_play(scene, Target(state.address, state.tenants[scene.tenant].api_key)) for scene in SCENES)
            )
    except ProgramFailed as failed:
        complain(str(failed))
        return Exit.FAILED
    runs = [_told(scene, timeline) for scene, timeline in zip(SCENES, ended, strict=True)]
    holds = all(inside_budget(timeline) for timeline in ended)
    if as_json:
        print(json.dumps({"runs": runs, "holds": holds}, ensure_ascii=False))
    else:
        _show(console, ended, holds)
    return Exit.ANSWERED if holds else Exit.FAILED


async def _play(scene: Scene, target: Target) -> Timeline | MeshError:
    try:
        return await run_to_end(target, scene.order)
    except MeshError as error:
        return error


def inside_budget(ended: Timeline | MeshError) -> bool:
    """Whether a run gave an answer, be it a partial one, before its deadline."""
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
            print_finished(run, console, title=f"{scene.tenant}: {scene.about}")
    broken = [scene.tenant for scene, run in zip(SCENES, ended, strict=True) if not inside_budget(run)]
    console.print()
    if holds:
        console.print(Text("Every tenant was answered inside its own budget.", style="bold green"))
    else:
        console.print(Text(f"Not answered inside its budget: {', '.join(broken)}.", style="bold red"))


def _nothing(what: str) -> None:
    return None


def _pass_on(name: str, line: str) -> None:
    print(f"{name} | {line}", file=sys.stderr, flush=True)
