"""Shows a run while it runs: a live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from deadlinemesh.v1 import common_pb2, orchestrator_pb2
from deadlinemesh.views.waterfall import Timeline

__all__ = ["LiveView", "PlainView", "View", "can_draw", "colour_of_outcome", "style_of"]

_TEXT_LINES = 6
"""Lines of the model's text that are shown, from its end."""


class View(Protocol):
    """Shows a run. The caller adds each event to `timeline` before it calls `show`."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def show(self, event: orchestrator_pb2.RunResponse, timeline: Timeline) -> None:
        """Show an event."""


class PlainView:
    """One line for each event, and the text as it arrives, without control codes."""

    def __init__(self) -> None:
        self._mid_line = False
        self._names: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._mid_line:
            print()

    def show(self, event: orchestrator_pb2.RunResponse, timeline: Timeline) -> None:
        match event.WhichOneof("event"):
            case "started":
                started = event.started
                grant = started.grant
                attached = ", attached" if started.attached else ""
                said = f"{grant.tier} tier, {grant.granted_us / 1e6:.1f} s granted, model {started.model}{attached}"
                self._line(event, f"run {started.run_id}: {said}")
            case "text":
                print(event.text.text, end="", flush=True)
                self._mid_line = not event.text.text.endswith("\n")
            case "tool_call_started":
                call, left = event.tool_call_started.call, event.tool_call_started.remaining_us / 1e6
                self._names[call.id] = call.name
                self._line(event, f"tool {call.name} {call.arguments_json}, {left:.1f} s left")
            case "tool_call_progress":
                progress = event.tool_call_progress
                name = self._names.get(progress.call_id, progress.call_id)
                self._line(event, f"tool {name} {progress.fraction:.0%} {progress.message}".rstrip())
            case "tool_call_finished":
                ended = event.tool_call_finished
                status = common_pb2.ToolStatus.Name(ended.status).removeprefix("TOOL_STATUS_")
                self._line(event, f"tool {ended.name} {status} after {ended.elapsed_us / 1e3:.1f} ms")

    def _line(self, event: orchestrator_pb2.RunResponse, text: str) -> None:
        if self._mid_line:
            print()
        self._mid_line = False
        print(f"[{event.elapsed_us / 1e3:9.1f} ms] {text}", flush=True)


class LiveView:
    """The phase, the remaining budget, running tools, and the text so far.

    Cleared when the run ends.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._timeline: Timeline | None = None
        self._began_at = time.monotonic()
        self._spinner = Spinner("dots")
        self._live = Live(console=console, transient=True, refresh_per_second=12, get_renderable=self._render)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, traceback)

    def show(self, event: orchestrator_pb2.RunResponse, timeline: Timeline) -> None:
        if event.HasField("started"):
            # The run's own clock. Its call arrived `elapsed_us` before this event was sent.
            self._began_at = time.monotonic() - event.elapsed_us / 1e6
        self._timeline = timeline

    def _render(self) -> RenderableType:
        timeline = self._timeline
        if timeline is None or timeline.started is None:
            self._spinner.update(text=Text("calling the mesh"))
            return self._spinner
        started = timeline.started
        grant = started.grant
        due = (grant.granted_us - grant.reserve_us) / 1e6
        elapsed = time.monotonic() - self._began_at
        left = max(0.0, due - elapsed)
        turn = f", turn {timeline.iteration} of {grant.max_iterations}" if timeline.iteration else ""
        self._spinner.update(text=Text.assemble((timeline.phase, _COLOURS.get(timeline.phase, "")), (turn, "dim")))
        budget = Table.grid(padding=(0, 1))
        low = left < 0.2 * due
        budget.add_row(
            Text(f"{left:5.1f} s left", style="bold red" if low else "bold"),
            ProgressBar(total=max(due, 1e-6), completed=left, width=40, complete_style="red" if low else "green"),
            Text(f"of {grant.granted_us / 1e6:.1f} s", style="dim"),
        )
        who = f" · {grant.tier} · {started.model}"
        head = Text.assemble((grant.tenant_id, "bold"), who, (f" · {started.run_id}", "dim"))
        parts: list[RenderableType] = [head, budget, self._spinner]
        for call_id, row in list(timeline.open_calls.items()):
            said = timeline.progress.get(call_id, "")
            took = f"{max(0.0, elapsed - row.start):.1f} s"
            parts.append(Text(f"  {row.label}  {took}  {said}", style=_COLOURS["tool"], no_wrap=True))
        if timeline.text:
            text = Text(timeline.text).wrap(self._console, self._console.width)
            parts += list(text[-_TEXT_LINES:])
        return Group(*parts)


_COLOURS = {
    "tool": "yellow",
    "admission": "bright_black",
    "llm_queue": "red",
    "llm_first_token": "blue",
    "llm_stream": "cyan",
    "tool_queue": "red",
    "tool_call": "magenta",
    "retry_backoff": "red",
    "processing": "white",
    "wrap_up": "bright_cyan",
    "response": "green",
    "title": "bold",
    "dim": "dim",
    "spent": "cyan",
    "left": "green",
    "reserve": "yellow",
    "alert": "bold red",
}


def style_of(kind: str) -> str:
    """The style of a waterfall's span."""
    return _COLOURS.get(kind, "")


def colour_of_outcome(finished: orchestrator_pb2.RunFinished) -> str:
    """Green for an answer, yellow for a partial one, red for none."""
    if finished.outcome == orchestrator_pb2.OUTCOME_COMPLETED:
        return "yellow" if finished.partial else "green"
    return "yellow" if finished.outcome == orchestrator_pb2.OUTCOME_DEADLINE_SPENT else "red"


def can_draw(console: Console) -> bool:
    """True if the console's encoding has the block characters of a waterfall."""
    encoding = console.encoding or sys.getdefaultencoding()
    try:
        "█━▏░▒".encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
