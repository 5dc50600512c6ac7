"""What agents and models say to each other, and when a history of it is valid."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Any

from deadlinemesh.errors import Violation

__all__ = ["Message", "Role", "ToolCall", "ToolSpec", "history_violations"]


_NAMED = 8
"""Open calls that are named where one is missed."""


class Role(StrEnum):
    """Who speaks. The names are those of the `Role` enum in `protos/`, in lower case without its prefix."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


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
    """A tool as it is described to those who may call it. `schema` is the JSON Schema of its arguments object."""

    name: str
    description: str
    schema: Mapping[str, Any]
    idempotent: bool = False


def history_violations(messages: Sequence[Message], field: str) -> list[Violation]:
    """What keeps `messages` from being a valid history; `field` is their name in the request.

    Valid: each call of an assistant's message is answered by exactly one tool message before the assistant speaks again.
    """
    history = _History()
    for index, message in enumerate(messages):
        history.add(f"{field}[{index}]", message)
    if messages:
        history.end(f"{field}[{len(messages) - 1}]")
    return history.violations


class _History:
    """Walks a conversation and keeps the calls that are not answered yet."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []
        self._open: dict[str, None] = {}
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
            self._open[call.id] = None
        if not call.name:
            self._refuse(f"{field}.name", "required: which tool was asked for")
        if not _is_object(call.arguments_json):
            self._refuse(f"{field}.arguments_json", "must be a JSON object")

    def _answer(self, field: str, call_id: str) -> None:
        if call_id in self._open:
            del self._open[call_id]
        elif call_id in self._seen:
            self._refuse(field, f"{call_id!r} is answered already; a call has exactly one result")
        else:
            self._refuse(field, f"{call_id!r} answers no open call; open are: {self._names() or 'none'}")

    def _names(self) -> str:
        # Some of them: a history may have thousands of mistakes, and each is told.
        named = ", ".join(islice(self._open, _NAMED))
        return f"{named} and {len(self._open) - _NAMED} more" if len(self._open) > _NAMED else named

    def _refuse(self, field: str, description: str) -> None:
        self.violations.append(Violation(field, description))


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
