"""A run's time as rows on one time axis. Pure: events in, rows and text out.

Times are in seconds since the run's call arrived.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deadlinemesh.v1 import common_pb2, orchestrator_pb2

__all__ = ["Line", "Row", "Span", "Timeline", "phase_name", "waterfall"]


@dataclass(frozen=True, slots=True)
class Row:
    """One segment of a phase, or one tool call."""

    label: str
    kind: str
    """The phase, or `tool`."""
    start: float
    duration: float
    note: str = ""
    """A tool call's status, in lower case; empty if it is OK."""


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of text and its kind.

    The kind is a row's kind, or one of `title`, `dim`, `spent`, `left`, `reserve`, `alert`.
    """

    text: str
    kind: str = ""


Line = tuple[Span, ...]


def phase_name(phase: int) -> str:
    """`llm_stream` for PHASE_LLM_STREAM; `phase_99` for a number that only a newer mesh knows."""
    try:
        return common_pb2.Phase.Name(phase).removeprefix("PHASE_").lower()
    except ValueError:
        return f"phase_{phase}"


class Timeline:
    """Collects a run's events."""

    def __init__(self) -> None:
        self.started: orchestrator_pb2.RunStarted | None = None
        self.finished: orchestrator_pb2.RunFinished | None = None
        self.phase = "admission"
        """The current phase. It began at `phase_since`."""
        self.phase_since = 0.0
        self.iteration = 0
        self.text = ""
        """The model's text in its current turn."""
        self.open_calls: dict[str, Row] = {}
        """Running tool calls by id."""
        self.progress: dict[str, str] = {}
        """The last progress message of each tool call, by id."""
        self._rows: list[Row] = []
        self._spent: dict[str, int] = {}

    def add(self, event: orchestrator_pb2.RunResponse) -> None:
        """Add the next event."""
        at = event.elapsed_us / 1e6
        match event.WhichOneof("event"):
            case "started":
                self.started = event.started
            case "phase_changed":
                changed = event.phase_changed
                self._close_phase(changed.spent)
                self.phase, self.phase_since = phase_name(changed.phase), at
                if changed.iteration != self.iteration:
                    self.iteration, self.text = changed.iteration, ""
            case "text":
                self.text += event.text.text
            case "tool_call_started":
                call = event.tool_call_started.call
                self.open_calls[call.id] = Row(call.name, "tool", at, 0.0)
            case "tool_call_progress":
                self.progress[event.tool_call_progress.call_id] = event.tool_call_progress.message
            case "tool_call_finished":
                ended = event.tool_call_finished
                begun = self.open_calls.pop(ended.call_id, None)
                took = ended.elapsed_us / 1e6
                start = max(0.0, at - took) if begun is None else begun.start
                status = common_pb2.ToolStatus.Name(ended.status).removeprefix("TOOL_STATUS_")
                self._rows.append(Row(ended.name, "tool", start, took, "" if status == "OK" else status.lower()))
            case "finished":
                self.finished = event.finished
                self._close_phase(event.finished.ledger.phases)

    def rows(self) -> list[Row]:
        """All ended rows in order of their start. A phase comes before the tools that run in it."""
        return sorted(self._rows, key=lambda row: (row.start, row.kind == "tool"))

    def _close_phase(self, spent: Sequence[common_pb2.PhaseSpend]) -> None:
        # The duration is the time that the ledger charged, not the time until the next event.
        # Between two phases there may be time of neither. Time already charged to the phase that
        # begins belongs to that phase.
        now = {phase_name(one.phase): one.spent_us for one in spent}.get(self.phase, 0)
        charged = now - self._spent.get(self.phase, 0)
        self._spent[self.phase] = now
        if charged > 0:
            self._rows.append(Row(self.phase, self.phase, self.phase_since, charged / 1e6))


_LABEL, _NUMBERS = 19, 22
_SHORT = 0.001
"""Seconds. Shorter segments share one row."""


def waterfall(timeline: Timeline, width: int = 80, *, ascii_only: bool = False) -> list[Line]:
    """The rows of a finished run as text, `width` columns wide, followed by its budget."""
    finished = timeline.finished
    assert finished is not None
    marks = _ASCII if ascii_only else _BLOCKS
    ledger = finished.ledger
    total = max(ledger.elapsed_us / 1e6, 1e-6)
    room = max(10, width - _LABEL - _NUMBERS)
    rows = timeline.rows()
    shown = [row for row in rows if row.kind == "tool" or row.duration >= _SHORT]
    short = [row for row in rows if row not in shown]
    title = f"{'phase / tool':<{_LABEL}}{'start ms':>10}{'ms':>11} {_axis(total, room)}"
    lines: list[Line] = [(Span(title, "dim"),)]
    for row in shown:
        label = f"  {row.label}" if row.kind == "tool" else row.label
        numbers = f"{row.start * 1000:>10.1f}{row.duration * 1000:>11.1f} "
        bar = _bar(row, total, room, marks)
        line = [Span(_fitted(label), row.kind), Span(numbers), Span(bar, row.kind)]
        if row.note:
            line[2:] = _noted(bar, row, room)
        lines.append(tuple(line))
    if short:
        together = sum(row.duration for row in short) * 1000
        segments = f"{len(short)} under 1 ms"
        lines.append((Span(_fitted(segments), "dim"), Span(f"{'':>10}{together:>11.1f}", "dim")))
    share = ledger.unattributed_us / max(ledger.elapsed_us, 1)
    lines.append((Span(f"{'unattributed':<{_LABEL}}{'':>10}{ledger.unattributed_us / 1e3:>11.1f} {share:.1%}", "dim"),))
    lines.append((Span(f"{'elapsed':<{_LABEL}}{'':>10}{ledger.elapsed_us / 1e3:>11.1f}", "title"),))
    return [*lines, *_budget(timeline, width, marks)]


def _budget(timeline: Timeline, width: int, marks: _Marks) -> list[Line]:
    assert timeline.finished is not None
    ledger = timeline.finished.ledger
    granted, elapsed = ledger.granted_us / 1e6, ledger.elapsed_us / 1e6
    reserve = timeline.started.grant.reserve_us / 1e6 if timeline.started else 0.0
    room = max(10, width - _LABEL)
    if granted <= 0:
        return []
    held = min(room, round(reserve / granted * room) or (1 if reserve else 0))
    spent = min(room, max(1, round(elapsed / granted * room)))
    left = max(0, room - held - spent)
    held = room - spent - left
    remaining = max(0.0, granted - elapsed)
    clipped = timeline.started is not None and timeline.started.grant.clipped
    asked = f"; {timeline.started.grant.requested_us / 1e6:.1f} s asked" if timeline.started and clipped else ""
    bars = (Span(marks.spent * spent, "spent"), Span(marks.left * left, "left"), Span(marks.reserve * held, "reserve"))
    says = f"spent {elapsed:.3f} s, left {remaining:.3f} s; reserve {reserve:.3f} s{asked}"
    return [(Span(_fitted(f"budget {granted:.3f} s"), "title"), *bars), (Span(" " * _LABEL), Span(says, "dim"))]


@dataclass(frozen=True, slots=True)
class _Marks:
    phase: str
    tool: str
    sliver: str
    spent: str
    left: str
    reserve: str


_BLOCKS = _Marks("█", "━", "▏", "█", "░", "▒")
_ASCII = _Marks("#", "=", "|", "#", ".", "r")


def _bar(row: Row, total: float, room: int, marks: _Marks) -> str:
    begin = min(room - 1, round(row.start / total * room))
    cells = row.duration / total * room
    if cells < 0.5:
        return " " * begin + marks.sliver
    end = min(room, max(begin + 1, round((row.start + row.duration) / total * room)))
    return " " * begin + (marks.tool if row.kind == "tool" else marks.phase) * (end - begin)


def _noted(bar: str, row: Row, room: int) -> list[Span]:
    """The bar with the row's note after it, or before it if only there is room.

    Without room on either side, the note is left out.
    """
    drawn = bar.lstrip(" ")
    before, behind = len(bar) - len(drawn), room - len(bar)
    if len(row.note) < behind:
        return [Span(bar, row.kind), Span(f" {row.note}", "alert")]
    if len(row.note) < before:
        return [Span(f"{row.note} ".rjust(before), "alert"), Span(drawn, row.kind)]
    return [Span(bar, row.kind)]


def _axis(total: float, room: int) -> str:
    half, end = _instant(total / 2), _instant(total)
    middle = room // 2
    left = ("0" + " " * middle)[:middle] + half
    return left + end.rjust(room - len(left)) if len(left) + len(end) < room else "0" + end.rjust(room - 1)


def _instant(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def _fitted(label: str) -> str:
    return f"{label if len(label) < _LABEL else label[: _LABEL - 2] + '…':<{_LABEL}}"
