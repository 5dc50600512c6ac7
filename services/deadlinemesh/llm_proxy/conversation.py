"""What a model turn is made of: messages and tools going in, events coming out."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from deadlinemesh.errors import InvalidRequest, Violation

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
    "check",
    "estimated_tokens",
    "parsed_schema",
]

_TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_CHARACTERS_PER_TOKEN = 4


class Role(StrEnum):
    """Who speaks."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


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
class ToolCall:
    """A model's wish that a tool be called. `id` is unique within the run."""

    id: str
    name: str
    arguments_json: str


@dataclass(frozen=True, slots=True)
class Message:
    """One entry of a conversation. `role` is None where the sender named none that is known."""

    role: Role | None
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool that the model may ask for. `schema` is the JSON Schema of its arguments object."""

    name: str
    description: str
    schema: Mapping[str, Any]
    idempotent: bool = False


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
class ToolCallReady:
    """A tool call, complete."""

    call: ToolCall


@dataclass(frozen=True, slots=True)
class TurnEnded:
    """The last event of a turn that was not cut."""

    finish_reason: FinishReason
    input_tokens: int
    output_tokens: int


Event = TextDelta | ToolCallReady | TurnEnded


def estimated_tokens(text: str) -> int:
    """The usual estimate where a provider does not count: one token for four characters, rounded up."""
    return -(-len(text) // _CHARACTERS_PER_TOKEN)


def parsed_schema(text: str, field: str, found: list[Violation]) -> Mapping[str, Any]:
    """The schema that `text` holds; empty text allows no arguments. What is wrong with it is added to `found`."""
    if not text.strip():
        return {"type": "object", "properties": {}}
    try:
        schema = json.loads(text)
    except ValueError as error:
        found.append(Violation(field, f"not JSON: {error}"))
        return {}
    if not isinstance(schema, dict) or not isinstance(schema.get("properties", {}), dict):
        found.append(Violation(field, 'must be the JSON Schema of an object: {"type": "object", "properties": {...}}'))
        return {}
    return schema


def check(turn: TurnRequest, found: Sequence[Violation] = ()) -> None:
    """Raise InvalidRequest with every violation in `turn`, and those `found` before, if there are any."""
    violations = [*found, *_of_messages(turn.messages), *_of_tools(turn)]
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
                Violation(field, f"{tool.name!r} is offered {uses[tool.name]} times; names must be unique")
            )
    if turn.tool_choice is ToolChoice.REQUIRED and not turn.tools:
        violations.append(Violation("tool_choice", "tools are required, but `tools` is empty"))
    return violations


def _of_messages(messages: Sequence[Message]) -> list[Violation]:
    if not messages:
        return [Violation("messages", "at least one message is needed")]
    history = _History()
    for index, message in enumerate(messages):
        history.add(f"messages[{index}]", message)
    history.end(f"messages[{len(messages) - 1}]")
    return history.violations


class _History:
    """Walks a conversation and keeps the calls that are not answered yet."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []
        self._open: set[str] = set()
        self._seen: set[str] = set()

    def add(self, field: str, message: Message) -> None:
        if message.role is None:
            self._refuse(f"{field}.role", "required: one of system, user, assistant, tool")
        if message.tool_calls and message.role is not Role.ASSISTANT:
            self._refuse(f"{field}.tool_calls", "only an assistant's message asks for tools")
        if message.role is Role.TOOL:
            self._answer(f"{field}.tool_call_id", message.tool_call_id)
        elif message.tool_call_id:
            self._refuse(f"{field}.tool_call_id", "only a tool's message answers a call")
        if message.role is Role.ASSISTANT:
            if self._open:
                self._refuse(field, f"an earlier message's calls are unanswered: {self._names()}")
                self._open.clear()
            for position, call in enumerate(message.tool_calls):
                self._ask(f"{field}.tool_calls[{position}]", call)

    def end(self, field: str) -> None:
        if self._open:
            self._refuse(field, f"the last message leaves calls unanswered: {self._names()}")

    def _ask(self, field: str, call: ToolCall) -> None:
        if not call.id:
            self._refuse(f"{field}.id", "required: the tool's result names it")
        elif call.id in self._seen:
            self._refuse(f"{field}.id", f"{call.id!r} was used before; ids are unique within a run")
        else:
            self._seen.add(call.id)
            self._open.add(call.id)
        if not call.name:
            self._refuse(f"{field}.name", "required: which tool was asked for")
        if not _is_object(call.arguments_json):
            self._refuse(f"{field}.arguments_json", "must be a JSON object")

    def _answer(self, field: str, call_id: str) -> None:
        if call_id in self._open:
            self._open.remove(call_id)
        elif call_id in self._seen:
            self._refuse(field, f"{call_id!r} is answered already; a call has exactly one result")
        else:
            self._refuse(field, f"{call_id!r} answers no open call; open are: {self._names() or 'none'}")

    def _names(self) -> str:
        return ", ".join(sorted(self._open))

    def _refuse(self, field: str, description: str) -> None:
        self.violations.append(Violation(field, description))


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
