"""One model turn: its request and its events."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from deadlinemesh.vocabulary.messages import Message, ProviderData, ToolCall
from deadlinemesh.vocabulary.phases import HopSpend
from deadlinemesh.vocabulary.tools import ToolSpec

__all__ = [
    "FinishReason",
    "ModelEvent",
    "TextDelta",
    "ToolChoice",
    "TurnEvent",
    "TurnFinished",
    "TurnRequest",
    "TurnStarted",
    "Writing",
]


class ToolChoice(StrEnum):
    """The choice of tools that a request allows the model."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"


class FinishReason(StrEnum):
    """The reason why a model stopped."""

    STOP = "stop"
    TOOL_CALLS = "tool_calls"
    LENGTH = "length"
    CONTENT_FILTER = "content_filter"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """The request of one model turn.

    With `max_output_tokens` 0 the model's limit in policy applies.
    """

    model: str
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: ToolChoice = ToolChoice.AUTO
    max_output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class TurnStarted:
    """A model slot was obtained after `queued` seconds."""

    model: str = ""
    queued: float = 0.0


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the model's text, never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class Writing:
    """A sign of life: the model writes a tool call, or chooses a tool. It may still choose none."""


@dataclass(frozen=True, slots=True)
class TurnFinished:
    """The end of a turn that was not cut."""

    finish_reason: FinishReason
    input_tokens: int
    output_tokens: int
    provider_data: ProviderData | None = None
    """The provider's data for the assistant's message of this turn."""
    spend: HopSpend | None = None
    """The llm-proxy's time. None in an event from a provider."""

    @property
    def truncated(self) -> bool:
        """True if the token limit ended the answer, or the provider withheld the rest."""
        return self.finish_reason in (FinishReason.LENGTH, FinishReason.CONTENT_FILTER)


ModelEvent = TextDelta | Writing | ToolCall | TurnFinished
"""An event of a provider's stream."""

TurnEvent = TurnStarted | ModelEvent
"""An event of a turn's stream from the llm-proxy."""
