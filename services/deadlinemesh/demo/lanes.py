"""Each run's time as one lane on a common time axis. Pure: pieces of time in, text out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rich.text import Text

__all__ = ["Act", "Lane", "Piece", "drawn", "letter"]

COLOURS = {"acme": "cyan", "bolt": "magenta", "cora": "green"}

_LABEL = 27
_VERDICT = 36


def letter(tenant: str) -> str:
    """The article's letter for a tenant."""
    return tenant[:1].upper()


@dataclass(slots=True)
class Piece:
    """A part of a run's time. `kind` is `model`, `tool`, `wait`, or `other`.

    `start` and `end` are seconds since the run began. `end` is None while the piece lasts.
    """

    kind: str
    start: float
    end: float | None = None
    by: str = ""
    """For `wait`: the tenant that holds the resource."""


@dataclass(slots=True)
class Lane:
    """One run from its user's view. The user leaves after `granted` seconds."""

    tenant: str
    label: str
    granted: float
    starts_at: float = 0.0
    """Seconds since the act began."""
    pieces: list[Piece] = field(default_factory=list)
    answered_at: float | None = None
    partial: bool = False
    failed: str = ""

    def enter(self, at: float, kind: str, by: str = "") -> None:
        """Begin a new piece of time at `at`, unless the last one is the same."""
        last = self.pieces[-1] if self.pieces else None
        if last is not None and last.end is None:
            if (last.kind, last.by) == (kind, by):
                return
            last.end = at
        self.pieces.append(Piece(kind, at, None, by))

    def leave(self, at: float) -> None:
        """End the last piece of time: the run is over, or no longer watched."""
        if self.pieces and self.pieces[-1].end is None:
            self.pieces[-1].end = at

    def eaten(self) -> dict[str, float]:
        """Seconds of the run's budget spent waiting, by the tenant that held the resource."""
        found: dict[str, float] = {}
        for piece in self.pieces:
            if piece.kind == "wait":
                seconds = min(self.granted, self.granted if piece.end is None else piece.end) - piece.start
                found[piece.by] = found.get(piece.by, 0.0) + max(0.0, seconds)
        return found

    def outlived(self) -> float:
        """Seconds that the run's work went on after its deadline."""
        ends = [piece.end for piece in self.pieces if piece.end is not None]
        return max(0.0, max(ends, default=0.0) - self.granted)

    def verdict(self) -> str:
        """The result for the user, in a few words."""
        others = {by: seconds for by, seconds in self.eaten().items() if by != self.tenant and seconds >= 0.05}
        ate = "".join(f"; {letter(by)} ate {seconds:.1f} s" for by, seconds in others.items())
        if self.answered_at is not None and self.answered_at <= self.granted:
            return f"{'partial' if self.partial else 'answered'} after {self.answered_at:.1f} s{ate}"
        return f"{self.failed or 'no answer'}{ate}"

    def as_json(self) -> dict[str, Any]:
        """The lane for `--json`."""
        in_time = self.answered_at is not None and self.answered_at <= self.granted
        eaten = {by: round(seconds * 1000, 3) for by, seconds in self.eaten().items()}
        return {
            "tenant": self.tenant,
            "about": self.label,
            "granted_ms": round(self.granted * 1000, 3),
            "answered_in_time": in_time,
            "answered_ms": None if self.answered_at is None else round(self.answered_at * 1000, 3),
            "partial": self.partial,
            "eaten_ms": {by: ms for by, ms in eaten.items() if by != self.tenant},
            "alive_after_deadline_ms": round(self.outlived() * 1000, 3),
        }


@dataclass(slots=True)
class Act:
    """One way of playing the incident."""

    title: str
    lanes: list[Lane] = field(default_factory=list)
    open_requests: int = 0
    """Requests still open at the upstreams after all deadlines."""

    def eaten(self, eater: str) -> dict[str, float]:
        """Seconds of each other tenant's budgets spent waiting for `eater`."""
        return {
            lane.tenant: lane.eaten().get(eater, 0.0) for lane in self.lanes if lane.tenant != eater and lane.pieces
        }

    def as_json(self) -> dict[str, Any]:
        """The act for `--json`."""
        return {"runs": [lane.as_json() for lane in self.lanes], "open_requests_after_deadlines": self.open_requests}


@dataclass(frozen=True, slots=True)
class _Marks:
    model: str
    tool: str
    late: str
    deadline: str
    answer: str


_BLOCKS = _Marks("▒", "█", "×", "│", "●")
_ASCII = _Marks(".", "#", "x", "|", "*")


def drawn(act: Act, seconds: float, width: int, *, now: float | None = None, ascii_only: bool = False) -> list[Text]:
    """The act on an axis of `seconds`, drawn up to `now`, in seconds since it began.

    Without `now` it is drawn to its end.
    """
    marks = _ASCII if ascii_only else _BLOCKS
    room = max(20, width - _LABEL - _VERDICT)
    until = seconds if now is None else now
    lines = [Text(act.title, style="bold")]
    for lane in act.lanes:
        colour = COLOURS.get(lane.tenant, "")
        line = Text(f"{letter(lane.tenant)} {lane.label}"[: _LABEL - 1].ljust(_LABEL), style=colour)
        for cell in range(room):
            glyph, style = _cell(lane, (cell + 0.5) * seconds / room, seconds / room, until, marks)
            line.append(glyph, style)
        over = now is None or now > lane.starts_at + lane.granted or lane.answered_at is not None
        answered = lane.answered_at is not None and lane.answered_at <= lane.granted
        line.append(f"  {lane.verdict()}" if over else "", "green" if answered else "bold red")
        lines.append(line)
    lines.append(_legend(marks))
    return lines


def _cell(lane: Lane, at: float, step: float, until: float, marks: _Marks) -> tuple[str, str]:
    own = at - lane.starts_at

    def is_at(instant: float) -> bool:
        return -step / 2 <= own - instant < step / 2

    if is_at(lane.granted):
        return marks.deadline, "bold"
    if lane.answered_at is not None and is_at(lane.answered_at) and own < lane.granted:
        return marks.answer, "bold green"
    if at > until:
        return " ", ""
    for piece in lane.pieces:
        if piece.start <= own < (piece.end if piece.end is not None else until - lane.starts_at):
            if own > lane.granted:
                return marks.late, "bold red"
            colour = COLOURS.get(lane.tenant, "")
            if piece.kind == "wait":
                return letter(piece.by) or "?", f"bold reverse {COLOURS.get(piece.by, '')}"
            return (marks.tool, colour) if piece.kind == "tool" else (marks.model, colour)
    return " ", ""


def _legend(marks: _Marks) -> Text:
    waits = "A B C waits for what that tenant holds"
    after = f"{marks.deadline} deadline  {marks.answer} answer  {marks.late} work after it"
    return Text(f"{marks.model} model  {marks.tool} tools  {waits}  {after}", style="dim")
