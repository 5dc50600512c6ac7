"""Messages that more than one service speaks, to the domain's words and back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import Any, TypeVar

from deadlinemesh.conversation import Message, Role, ToolCall, ToolSpec
from deadlinemesh.deadline import Phase
from deadlinemesh.v1 import common_pb2

__all__ = [
    "add_message",
    "add_messages",
    "hop_spend",
    "message_from_wire",
    "messages_from_wire",
    "microseconds",
    "phase_from_wire",
    "phase_spends",
    "phase_to_wire",
    "tool_call_from_wire",
    "tool_call_to_wire",
    "tool_spec_from_wire",
    "tool_spec_to_wire",
]

LONGEST = 366 * 86400.0
"""Seconds. Who says more has mistaken the unit."""

_BETWEEN_TURNS = 512
"""Messages and calls that are converted in one turn of the event loop: about 2 ms."""

_M = TypeVar("_M", Message, common_pb2.Message)

_ROLES = {getattr(common_pb2, f"ROLE_{role.name}"): role for role in Role}
_ROLES_TO_WIRE = {role: value for value, role in _ROLES.items()}
_PHASES = {getattr(common_pb2, f"PHASE_{phase.name}"): phase for phase in Phase}
_PHASES_TO_WIRE = {phase: value for value, phase in _PHASES.items()}


def microseconds(seconds: float) -> int:
    """A duration as the wire has it: from none to a year, whatever a tool or a peer has made of it."""
    return round(max(0.0, min(seconds, LONGEST)) * 1_000_000)


def phase_to_wire(phase: Phase) -> Any:
    """The enum's value."""
    return _PHASES_TO_WIRE[phase]


def phase_from_wire(value: int) -> Phase | None:
    """The phase; None where a newer peer names one that is unknown here."""
    return _PHASES.get(value)


def phase_spends(spent: Mapping[Phase, float]) -> list[common_pb2.PhaseSpend]:
    """Seconds by phase as messages."""
    return [
        common_pb2.PhaseSpend(phase=phase_to_wire(phase), spent_us=microseconds(seconds))
        for phase, seconds in spent.items()
    ]


def hop_spend(hop: str, elapsed: float, spent: Mapping[Phase, float]) -> common_pb2.HopSpend:
    """What a hop says of its own time. Durations are in seconds."""
    return common_pb2.HopSpend(hop=hop, elapsed_us=microseconds(elapsed), phases=phase_spends(spent))


def tool_call_to_wire(call: ToolCall) -> common_pb2.ToolCall:
    """A tool call as a message."""
    return common_pb2.ToolCall(id=call.id, name=call.name, arguments_json=call.arguments_json)


def tool_call_from_wire(call: common_pb2.ToolCall) -> ToolCall:
    """A tool call from a message."""
    return ToolCall(call.id, call.name, call.arguments_json)


def add_message(field: Any, message: Message) -> None:
    """Add an entry of a conversation to a field of messages."""
    # In its place at once: a message that is put into another is written and read again, and may have megabytes.
    added = field.add(
        role=common_pb2.ROLE_UNSPECIFIED if message.role is None else _ROLES_TO_WIRE[message.role],
        content=message.content,
        tool_call_id=message.tool_call_id,
    )
    for call in message.tool_calls:
        added.tool_calls.add(id=call.id, name=call.name, arguments_json=call.arguments_json)


def message_from_wire(message: common_pb2.Message) -> Message:
    """An entry of a conversation from a message; an unknown role becomes None."""
    return Message(
        role=_ROLES.get(message.role),
        content=message.content,
        tool_calls=tuple(tool_call_from_wire(call) for call in message.tool_calls),
        tool_call_id=message.tool_call_id,
    )


async def add_messages(field: Any, messages: Iterable[Message]) -> None:
    """Add the entries of a conversation to a field of messages. The event loop turns after every few."""
    async for message in _with_turns(messages):
        add_message(field, message)


async def messages_from_wire(messages: Iterable[common_pb2.Message]) -> list[Message]:
    """The entries of a conversation from messages. The event loop turns after every few."""
    return [message_from_wire(message) async for message in _with_turns(messages)]


async def _with_turns(messages: Iterable[_M]) -> AsyncGenerator[_M, None]:
    left = _BETWEEN_TURNS
    for message in messages:
        left -= 1 + len(message.tool_calls)
        if left < 0:
            left = _BETWEEN_TURNS
            await asyncio.sleep(0)
        yield message


def tool_spec_to_wire(spec: ToolSpec) -> common_pb2.ToolSpec:
    """A tool's description as a message."""
    return common_pb2.ToolSpec(
        name=spec.name,
        description=spec.description,
        arguments_schema_json=json.dumps(spec.schema, ensure_ascii=False),
        idempotent=spec.idempotent,
    )


def tool_spec_from_wire(spec: common_pb2.ToolSpec) -> ToolSpec:
    """A tool's description from a message. Raises ValueError where the schema is no JSON object; empty allows no arguments."""
    try:
        schema = json.loads(spec.arguments_schema_json or '{"type": "object", "properties": {}}')
    except RecursionError:
        raise ValueError(f"the schema of the tool {spec.name} is nested too deeply") from None
    if not isinstance(schema, dict):
        raise ValueError(f"the schema of the tool {spec.name} is no JSON object")
    return ToolSpec(spec.name, spec.description, schema, spec.idempotent)
