"""The events of a run, for its watchers. Times are in seconds."""

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
    """The end of a run. Names are those of the `Outcome` enum in `protos/`, without its prefix."""

    COMPLETED = "COMPLETED"
    DEADLINE_SPENT = "DEADLINE_SPENT"
    CANCELLED = "CANCELLED"
    FAILED = "FAILED"


@dataclass(slots=True)
class Usage:
    """The tokens and calls that a run has used so far."""

    input_tokens: int = 0
    output_tokens: int = 0
    model_calls: int = 0
    tool_calls: int = 0


@dataclass(frozen=True, slots=True)
class RunStarted:
    """The run's first event."""


@dataclass(frozen=True, slots=True)
class PhaseChanged:
    """The run entered another phase. `remaining` counts to the due instant, `spent` is by phase."""

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
    """A tool's progress: `fraction` from 0 to 1."""

    call_id: str
    message: str
    fraction: float


@dataclass(frozen=True, slots=True)
class ToolCallFinished:
    """A tool call has its result. The result may be a synthetic one."""

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
        """Seconds that belong to no phase."""
        return self.elapsed - sum(self.phases.values())


RunEvent = RunStarted | PhaseChanged | TextDelta | ToolCallStarted | ToolCallProgress | ToolCallFinished | RunFinished


@dataclass(frozen=True, slots=True)
class Timed:
    """An event with its time, in seconds since the arrival of the run's call."""

    elapsed: float
    event: RunEvent
