"""What a run tells those who watch it. Times are in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from deadlinemesh.errors import Cause
from deadlinemesh.vocabulary import HopSpend, Phase, TextDelta, ToolCall, ToolStatus

__all__ = [
    "Outcome",
    "PhaseChanged",
    "RunEvent",
    "RunFinished",
    "RunStarted",
    "Timed",
    "ToolCallFinished",
    "ToolCallProgress",
    "ToolCallStarted",
    "Usage",
]


class Outcome(StrEnum):
    """How a run ended. The names are those of the `Outcome` enum in `protos/`, without its prefix."""

    COMPLETED = "COMPLETED"
    DEADLINE_SPENT = "DEADLINE_SPENT"
    CANCELLED = "CANCELLED"
    FAILED = "FAILED"


@dataclass(slots=True)
class Usage:
    """What a run consumed so far."""

    input_tokens: int = 0
    output_tokens: int = 0
    model_calls: int = 0
    tool_calls: int = 0


@dataclass(frozen=True, slots=True)
class RunStarted:
    """The run's first event."""


@dataclass(frozen=True, slots=True)
class PhaseChanged:
    """Another phase is in force."""

    phase: Phase
    iteration: int
    remaining: float
    spent: dict[Phase, float]


@dataclass(frozen=True, slots=True)
class ToolCallStarted:
    """A tool call was dispatched."""

    call: ToolCall
    iteration: int
    remaining: float


@dataclass(frozen=True, slots=True)
class ToolCallProgress:
    """How far a tool is."""

    call_id: str
    message: str
    fraction: float


@dataclass(frozen=True, slots=True)
class ToolCallFinished:
    """A tool call has its result, if only a synthetic one."""

    call: ToolCall
    status: ToolStatus
    content: str
    elapsed: float
    spend: HopSpend | None


@dataclass(frozen=True, slots=True)
class RunFinished:
    """The run's last event."""

    outcome: Outcome
    cause: Cause | None
    detail: str
    answer: str
    partial: bool
    granted: float
    elapsed: float
    phases: dict[Phase, float]
    usage: Usage
    iterations: int

    @property
    def unattributed(self) -> float:
        """What no phase explains."""
        return self.elapsed - sum(self.phases.values())


RunEvent = RunStarted | PhaseChanged | TextDelta | ToolCallStarted | ToolCallProgress | ToolCallFinished | RunFinished


@dataclass(frozen=True, slots=True)
class Timed:
    """An event and when it happened, in seconds since the run's call arrived."""

    elapsed: float
    event: RunEvent
