"""Tools for models that ignore `tools`.

The model chooses one by a JSON object of a constrained form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from deadlinemesh.llm_proxy.providers.deltas import new_call_id
from deadlinemesh.vocabulary import Message, Role, ToolCall, ToolChoice, ToolSpec, TurnRequest

__all__ = ["asking", "choice_schema", "chosen", "spelled_out"]

_ANSWER = "answer"
_LONGEST_STRING = 200
"""Characters of a string in a choice. Small models tend never to close an unbounded string."""

_MOST_COMPARED = 64
"""Earlier calls of a tool that a new one is compared with: the last ones."""


def choice_schema(turn: TurnRequest) -> dict[str, Any]:
    """The JSON Schema of a choice among the tools of `turn`.

    If none is required, also of `answer`.
    """
    options = [
        _choice_of({"const": tool.name}, {"arguments": _bounded(tool.schema)}, ["tool", "arguments"])
        for tool in turn.tools
    ]
    if turn.tool_choice is not ToolChoice.REQUIRED:
        options.append(_choice_of({"const": _ANSWER}, {}, ["tool"]))
    return {"oneOf": options}


def asking(turn: TurnRequest, messages: Sequence[Message]) -> tuple[Message, ...]:
    """`messages`, followed by the request to choose a tool of `turn`."""
    offered = "\n".join(f"- {tool.name}({', '.join(_parameters(tool))}): {tool.description}" for tool in turn.tools)
    last = (
        "" if turn.tool_choice is ToolChoice.REQUIRED else f"\n- {_ANSWER}: no further tool is needed; answer the user"
    )
    instruction = (
        f"Tools:\n{offered}{last}\nReply with the JSON of the one tool that is needed next, and its arguments."
    )
    return (*spelled_out(messages), Message(Role.SYSTEM, instruction))


def chosen(text: str, turn: TurnRequest) -> ToolCall | None:
    """The call that `text` asks for. None unless it is new, complete and offered.

    A call that is in the history is not made again: small models repeat the same call for ever.
    """
    try:
        return _chosen(text, turn)
    except (ValueError, RecursionError):  # no JSON, or nested too deeply to read, compare or write
        return None


def _chosen(text: str, turn: TurnRequest) -> ToolCall | None:
    choice = json.loads(text)
    if not isinstance(choice, dict) or choice.get("tool") not in {tool.name for tool in turn.tools}:
        return None
    arguments = choice.get("arguments", {})
    if not isinstance(arguments, dict) or _was_made(choice["tool"], arguments, turn):
        return None
    return ToolCall(new_call_id(), choice["tool"], json.dumps(arguments, ensure_ascii=False))


def _was_made(tool: str, arguments: dict[str, Any], turn: TurnRequest) -> bool:
    made = [call.arguments_json for message in turn.messages for call in message.tool_calls if call.name == tool]
    # The same arguments in another spelling are about as long. Far longer ones are not parsed.
    longest = 2 * len(json.dumps(arguments)) + 100
    return any(len(text) <= longest and _parsed(text) == arguments for text in made[-_MOST_COMPARED:])


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:  # a long history is not validated in full
        return None


def spelled_out(messages: Sequence[Message]) -> tuple[Message, ...]:
    """`messages` with calls and results as plain text, for chat templates without tools."""
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    return tuple(_spelled_out(message, names) for message in messages)


def _spelled_out(message: Message, names: Mapping[str, str]) -> Message:
    if message.role is Role.TOOL:
        return Message(Role.USER, f"Result of {names.get(message.tool_call_id, 'the tool')}: {message.content}")
    if message.tool_calls:
        calls = "\n".join(
            f'{{"tool": "{call.name}", "arguments": {call.arguments_json}}}' for call in message.tool_calls
        )
        return replace(message, content=f"{message.content}\n{calls}".strip(), tool_calls=())
    return message


def _choice_of(tool: dict[str, Any], more: dict[str, Any], required: list[str]) -> dict[str, Any]:
    properties = {"tool": tool, **more}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _bounded(schema: Mapping[str, Any]) -> dict[str, Any]:
    properties = {
        name: {"maxLength": _LONGEST_STRING, **declared} if _is_free_text(declared) else declared
        for name, declared in schema.get("properties", {}).items()
    }
    return {"type": "object", "additionalProperties": False, **schema, "properties": properties}


def _is_free_text(declared: Any) -> bool:
    return (
        isinstance(declared, dict)
        and declared.get("type") == "string"
        and not {"enum", "const", "pattern"} & set(declared)
    )


def _parameters(tool: ToolSpec) -> list[str]:
    return list(tool.schema.get("properties", {}))
