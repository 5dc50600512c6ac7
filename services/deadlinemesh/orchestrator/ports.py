"""What the agent loop needs of the world, in its own words. `adapters.py` has the gRPC side."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from deadlinemesh.conversation import Message, ToolCall, ToolSpec
from deadlinemesh.deadline import Phase

__all__ = [
    "ModelEvent",
    "ModelPort",
    "Spend",
    "TextDelta",
    "ToolEvent",
    "ToolPort",
    "ToolProgress",
    "ToolResult",
    "ToolStarted",
    "ToolStatus",
    "TurnFinished",
    "TurnStarted",
    "Writing",
]


@dataclass(frozen=True, slots=True)
class Spend:
    """What another hop says of its own time, in seconds."""

    hop: str
    elapsed: float
    phases: dict[Phase, float]


@dataclass(frozen=True, slots=True)
class TurnStarted:
    """A model slot was obtained."""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the model's text."""

    text: str


@dataclass(frozen=True, slots=True)
class Writing:
    """A sign of life: the model writes a tool call, or chooses among the tools. It has said nothing by that."""


@dataclass(frozen=True, slots=True)
class TurnFinished:
    """A model turn came to its own end."""

    input_tokens: int
    output_tokens: int
    truncated: bool
    """Whether the token limit ended it, or the provider withheld the rest."""


ModelEvent = TurnStarted | TextDelta | Writing | ToolCall | TurnFinished


class ModelPort(Protocol):
    """Model turns."""

    def generate(
        self, model: str, messages: Sequence[Message], tools: Sequence[ToolSpec], max_output_tokens: int
    ) -> AsyncGenerator[ModelEvent, None]:
        """Stream one turn. Closing the generator stops the model. Raises MeshError."""


class ToolStatus(StrEnum):
    """How a tool call ended. The names are those of the `ToolStatus` enum in `protos/`, without its prefix."""

    OK = "OK"
    FAILED = "FAILED"
    INVALID_ARGUMENTS = "INVALID_ARGUMENTS"
    UNKNOWN_TOOL = "UNKNOWN_TOOL"
    CUT = "CUT"


@dataclass(frozen=True, slots=True)
class ToolStarted:
    """A connection or a worker was obtained."""


@dataclass(frozen=True, slots=True)
class ToolProgress:
    """How far the tool is: `fraction` from 0 to 1."""

    message: str
    fraction: float


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What came of a tool call, as the model will read it."""

    status: ToolStatus
    content: str
    transient: bool = False
    """For a failure: whether trying again may help."""
    retry_after: float | None = None
    """Seconds that the tool asks to be left alone; None where it does not say."""
    spend: Spend | None = None


ToolEvent = ToolStarted | ToolProgress | ToolResult


class ToolPort(Protocol):
    """Tools."""

    async def specs(self) -> tuple[ToolSpec, ...]:
        """The current tenant's tools. Raises MeshError."""

    def call(self, call: ToolCall) -> AsyncGenerator[ToolEvent, None]:
        """Run one tool; the last event is its result. Closing the generator stops it. Raises MeshError."""
