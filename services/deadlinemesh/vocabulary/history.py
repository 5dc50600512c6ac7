"""The rules of a valid history."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice

from deadlinemesh.errors import Violation, Violations, shortened, shown
from deadlinemesh.vocabulary.messages import Message, Role, ToolCall

__all__ = ["LONGEST_ARGUMENTS", "LONGEST_CALL_ID", "LONGEST_TOOL_NAME", "history_violations"]

LONGEST_CALL_ID = 256
"""Characters of a call's id."""

LONGEST_TOOL_NAME = 128
"""Characters of a tool's name in a call."""

LONGEST_ARGUMENTS = 131_072
"""Characters of one call's arguments, the default in policy. Parsing takes 4 ms at worst."""

_MOST_PARSED = 131_072
"""Characters of arguments that are parsed per history. Parsing blocks the event loop. Of later
arguments only the outer braces are checked."""

_NAMED = 8
"""Open calls that an error about unanswered calls names."""


def history_violations(
    messages: Sequence[Message], field: str, longest_arguments: int = LONGEST_ARGUMENTS
) -> list[Violation]:
    """The first violations in `messages`, and the number of further ones. Empty if there are none.

    In a valid history each call of an assistant's message is answered by exactly one tool message,
    before the next message of the assistant. `field` is the name of the request's field. A call's
    arguments may have `longest_arguments` characters.
    """
    history = _History(longest_arguments)
    for index, message in enumerate(messages):
        history.add(f"{field}[{index}]", message)
    if messages:
        history.end(f"{field}[{len(messages) - 1}]")
    return history.violations.told()


class _History:
    """Walks through a conversation and tracks its unanswered calls."""

    def __init__(self, longest_arguments: int) -> None:
        self.violations = Violations()
        self._longest_arguments = longest_arguments
        self._parsed = 0
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
        elif len(call.id) > LONGEST_CALL_ID:
            self._refuse(f"{field}.id", _too_long(call.id, LONGEST_CALL_ID))
        elif call.id in self._seen:
            self._refuse(f"{field}.id", f"{shown(call.id)} was used before; ids are unique within a run")
        else:
            self._seen.add(call.id)
            self._open[call.id] = None
        if not call.name:
            self._refuse(f"{field}.name", "required: which tool was asked for")
        elif len(call.name) > LONGEST_TOOL_NAME:
            self._refuse(f"{field}.name", _too_long(call.name, LONGEST_TOOL_NAME))
        if len(call.arguments_json) > self._longest_arguments:
            self._refuse(f"{field}.arguments_json", _too_long(call.arguments_json, self._longest_arguments))
        elif not self._is_object(call.arguments_json):
            self._refuse(f"{field}.arguments_json", "must be a JSON object")

    def _answer(self, field: str, call_id: str) -> None:
        if len(call_id) > LONGEST_CALL_ID:
            self._refuse(field, _too_long(call_id, LONGEST_CALL_ID))
        elif call_id in self._open:
            del self._open[call_id]
        elif call_id in self._seen:
            self._refuse(field, f"{shown(call_id)} is answered already; a call has exactly one result")
        else:
            self._refuse(field, f"{shown(call_id)} answers no open call; open are: {self._names() or 'none'}")

    def _names(self) -> str:
        named = ", ".join(shortened(name, 40) for name in islice(self._open, _NAMED))
        return f"{named} and {len(self._open) - _NAMED} more" if len(self._open) > _NAMED else named

    def _refuse(self, field: str, description: str) -> None:
        self.violations.add(field, description)

    def _is_object(self, text: str) -> bool:
        self._parsed += len(text)
        if self._parsed > _MOST_PARSED:
            outline = text.strip()
            return outline[:1] == "{" and outline[-1:] == "}"
        try:
            return isinstance(json.loads(text), dict)
        except (ValueError, RecursionError):
            return False


def _too_long(text: str, most: int) -> str:
    return f"has {len(text)} characters; at most {most} are taken"
