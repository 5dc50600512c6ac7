"""`dmesh run`: watches one run to its end, then shows the time by phase."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from deadlinemesh.client import DeadlineMesh
from deadlinemesh.client.mesh import checked_key
from deadlinemesh.errors import MeshError, UpstreamFailed, WrongUsage, choices
from deadlinemesh.hosting.settings import CommandSettings
from deadlinemesh.local import state as states
from deadlinemesh.v1 import orchestrator_pb2
from deadlinemesh.views.live import LiveView, PlainView, View, can_draw, colour_of_outcome, style_of
from deadlinemesh.views.output import Exit, complain, error_json, exit_of_error, exit_of_run, explain, run_json
from deadlinemesh.views.waterfall import Timeline, waterfall
from deadlinemesh.vocabulary.hops import ORCHESTRATOR

__all__ = ["NoMesh", "Order", "Target", "find_mesh", "print_finished", "run", "run_to_end"]


class NoMesh(WrongUsage):
    """There is no mesh to call, or no key for it. The message says how to correct this."""


@dataclass(frozen=True, slots=True)
class Target:
    """A mesh's address, and the API key for it."""

    address: str
    api_key: str
    plaintext: bool | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """A run to start. `deadline` is in seconds; None means the tenant's tier decides."""

    prompt: str
    deadline: float | None = None
    model: str = ""
    tools: tuple[str, ...] = ()
    request_id: str = ""


def find_mesh(settings: CommandSettings, tenant: str, address: str, key: str, plaintext: bool | None) -> Target:
    """The mesh to call: the named one, or else the one that `dmesh up` started. Raises NoMesh."""
    if tenant and key:
        raise NoMesh("--tenant picks a key of the mesh that `dmesh up` started: give it or --key, not both")
    up = states.read(settings.state_path)
    where = address or ("" if tenant else settings.addr) or (up.address if up else "")
    if not where:
        raise NoMesh("no mesh is known: start one with `dmesh up`, or name one with --address and --key")
    if key or (settings.api_key and not tenant):
        try:
            return Target(where, checked_key(key or settings.api_key), plaintext)
        except ValueError as error:
            raise NoMesh(f"{'--key' if key else 'DMESH_API_KEY'}: {error}") from None
    if up is None or where != up.address:
        raise NoMesh(f"no key for {where}: give --key, or set DMESH_API_KEY")
    chosen = tenant or next(iter(up.tenants))
    if chosen not in up.tenants:
        raise NoMesh(f"--tenant {chosen!r} is unknown: {choices(up.tenants)}")
    return Target(where, up.tenants[chosen].api_key, plaintext)


async def run(target: Target, order: Order, *, as_json: bool, console: Console) -> Exit:
    """Run an agent and print the result."""
    view: View | None = None
    if not as_json:
        view = LiveView(console) if console.is_terminal else PlainView()
    try:
        timeline = await run_to_end(target, order, view)
    except MeshError as error:
        if as_json:
            print(json.dumps(error_json(error), ensure_ascii=False))
        else:
            complain(*explain(error))
            if exit_of_error(error) is Exit.UNAVAILABLE:
                complain(f"  is a mesh up at {target.address}? `dmesh up` starts one")
        return exit_of_error(error)
    assert timeline.finished is not None
    if as_json:
        print(json.dumps(run_json(timeline), ensure_ascii=False))
    else:
        print_finished(timeline, console)
    return exit_of_run(timeline.finished)


async def run_to_end(target: Target, order: Order, view: View | None = None) -> Timeline:
    """Watch a run to its end. Raises a MeshError if the run does not finish."""
    timeline = Timeline()
    async with DeadlineMesh(target.address, api_key=target.api_key, plaintext=target.plaintext) as mesh:
        events = mesh.run(
            order.prompt, deadline=order.deadline, model=order.model, tools=order.tools, request_id=order.request_id
        )
        async with aclosing(events):
            if view is None:
                async for event in events:
                    timeline.add(event)
            else:
                with view:
                    async for event in events:
                        timeline.add(event)
                        view.show(event, timeline)
    if timeline.finished is None:
        raise UpstreamFailed("the stream ended before the run did; ask for it with GetRun", hop=ORCHESTRATOR)
    return timeline


def print_finished(timeline: Timeline, console: Console, *, title: str = "") -> None:
    """Print the answer, then the time by phase."""
    finished = timeline.finished
    assert finished is not None
    console.print(Text(f"\n{title or ('PARTIAL answer' if finished.partial else 'answer')}", style="bold"))
    console.print(Text(finished.answer), soft_wrap=not console.is_terminal)
    console.print()
    console.print(_summary(timeline, finished))
    width = min(console.width, _WIDEST)
    for line in waterfall(timeline, width, ascii_only=not can_draw(console)):
        spans = [(span.text, style_of(span.kind)) for span in line]
        console.print(Text.assemble(*spans), soft_wrap=True)
    usage = finished.usage
    used = [
        _counted(usage.model_calls, "model call"),
        _counted(usage.tool_calls, "tool call"),
        f"{usage.input_tokens} tokens read, {usage.output_tokens} written",
    ]
    console.print(Text(f"{'':19}{', '.join(used)}", style="dim"), soft_wrap=True)


_WIDEST = 120


def _summary(timeline: Timeline, finished: orchestrator_pb2.RunFinished) -> Text:
    outcome = orchestrator_pb2.Outcome.Name(finished.outcome).removeprefix("OUTCOME_")
    parts: Sequence[str | tuple[str, str]] = [(outcome, f"bold {colour_of_outcome(finished)}")]
    if finished.detail:
        parts = [*parts, f": {finished.detail}"]
    if timeline.started is not None:
        grant = timeline.started.grant
        parts = [*parts, (f"  {grant.tenant_id}, {grant.tier} tier, {timeline.started.model}", "dim")]
    return Text.assemble(*parts)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
