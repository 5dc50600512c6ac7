"""What a model turn is made of: messages and tools going in, events coming out."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from deadlinemesh.conversation import LONGEST_ARGUMENTS, Message, Role, ToolCall, ToolSpec, history_violations
from deadlinemesh.errors import InvalidRequest, Violation, shown

__all__ = [
    "Event",
    "FinishReason",
    "Message",
    "Role",
    "TextDelta",
    "ToolCall",
    "ToolCallReady",
    "ToolChoice",
    "ToolSpec",
    "TurnEnded",
    "TurnRequest",
    "Writing",
    "check",
    "estimated_tokens",
    "parsed_schema",
]

_TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_CHARACTERS_PER_TOKEN = 4


class ToolChoice(StrEnum):
    """Whether the model may, must not or must ask for tools."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"


class FinishReason(StrEnum):
    """Why a model stopped."""

    STOP = "stop"
    TOOL_CALLS = "tool_calls"
    LENGTH = "length"
    CONTENT_FILTER = "content_filter"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """One model turn. `max_output_tokens` 0 leaves the limit to the model's entry in policy."""

    model: str
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: ToolChoice = ToolChoice.AUTO
    max_output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the answer, never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class Writing:
    """The model writes a tool call, or chooses among the tools."""


@dataclass(frozen=True, slots=True)
class ToolCallReady:
    """A tool call, complete."""

    call: ToolCall


@dataclass(frozen=True, slots=True)
class TurnEnded:
    """The last event of a turn that was not cut."""

    finish_reason: FinishReason
    input_tokens: int
    output_tokens: int


Event = TextDelta | Writing | ToolCallReady | TurnEnded


def estimated_tokens(text: str) -> int:
    """The usual estimate where a provider does not count: one token for four characters, rounded up."""
    return -(-len(text) // _CHARACTERS_PER_TOKEN)


def parsed_schema(text: str, field: str, found: list[Violation]) -> Mapping[str, Any]:
    """The schema that `text` holds; empty text allows no arguments. What is wrong with it is added to `found`."""
    if not text.strip():
        return {"type": "object", "properties": {}}
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        found.append(Violation(field, f"not JSON: {error}"))
        return {}
    if not isinstance(schema, dict) or not isinstance(schema.get("properties", {}), dict):
        found.append(Violation(field, 'must be the JSON Schema of an object: {"type": "object", "properties": {...}}'))
        return {}
    return schema


def check(turn: TurnRequest, found: Sequence[Violation] = (), *, longest_arguments: int = LONGEST_ARGUMENTS) -> None:
    """Raise InvalidRequest with every violation in `turn`, and those `found` before, if there are any."""
    violations = [*found, *_of_messages(turn.messages, longest_arguments), *_of_tools(turn)]
    if turn.max_output_tokens < 0:
        violations.append(Violation("max_output_tokens", "must be positive, or 0 for the model's own limit"))
    if violations:
        raise InvalidRequest(violations)


def _of_tools(turn: TurnRequest) -> list[Violation]:
    violations = []
    uses = Counter(tool.name for tool in turn.tools)
    for index, tool in enumerate(turn.tools):
        field = f"tools[{index}].name"
        if not _TOOL_NAME.fullmatch(tool.name):
            violations.append(Violation(field, "must be 1 to 64 letters, digits, underscores or hyphens"))
        elif uses[tool.name] > 1:
            violations.append(
                Violation(field, f"{shown(tool.name)} is offered {uses[tool.name]} times; names must be unique")
            )
    if turn.tool_choice is ToolChoice.REQUIRED and not turn.tools:
        violations.append(Violation("tool_choice", "tools are required, but `tools` is empty"))
    return violations


def _of_messages(messages: Sequence[Message], longest_arguments: int) -> list[Violation]:
    if not messages:
        return [Violation("messages", "at least one message is needed")]
    return history_violations(messages, "messages", longest_arguments)
