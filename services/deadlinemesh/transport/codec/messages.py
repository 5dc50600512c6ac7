"""Conversations and tool calls on the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from typing import Any, TypeVar

from deadlinemesh.v1 import common_pb2
from deadlinemesh.vocabulary import Message, ProviderData, Role, ToolCall

__all__ = [
    "add_message",
    "add_messages",
    "message_from_wire",
    "messages_from_wire",
    "provider_data_from_wire",
    "provider_data_to_wire",
    "tool_call_from_wire",
    "tool_call_to_wire",
]

_ENTRIES_PER_TURN = 512
"""Messages and tool calls converted in one turn of the event loop, about 2 ms."""

_M = TypeVar("_M", Message, common_pb2.Message)

_ROLES = {getattr(common_pb2, f"ROLE_{role.name}"): role for role in Role}
_ROLES_TO_WIRE = {role: value for value, role in _ROLES.items()}


def provider_data_to_wire(data: ProviderData | None) -> common_pb2.ProviderData | None:
    """Encode opaque data. None stays None: the field is left unset."""
    return None if data is None else common_pb2.ProviderData(provider=data.provider, data=data.data)


def provider_data_from_wire(holder: Any) -> ProviderData | None:
    """Decode the opaque data of a message that has the field `provider_data`; None if
    it is unset.
    """
    if not holder.HasField("provider_data"):
        return None
    return ProviderData(holder.provider_data.provider, holder.provider_data.data)


def tool_call_to_wire(call: ToolCall) -> common_pb2.ToolCall:
    """Encode a tool call."""
    return common_pb2.ToolCall(
        id=call.id,
        name=call.name,
        arguments_json=call.arguments_json,
        provider_data=provider_data_to_wire(call.provider_data),
    )


def tool_call_from_wire(call: common_pb2.ToolCall) -> ToolCall:
    """Decode a tool call."""
    return ToolCall(call.id, call.name, call.arguments_json, provider_data_from_wire(call))


def add_message(field: Any, message: Message) -> None:
    """Add one entry of a conversation to a repeated field."""
    # Built in place. A message that is put into another one is serialized and parsed again, and it
    # may have megabytes.
    added = field.add(
        role=common_pb2.ROLE_UNSPECIFIED if message.role is None else _ROLES_TO_WIRE[message.role],
        content=message.content,
        tool_call_id=message.tool_call_id,
        provider_data=provider_data_to_wire(message.provider_data),
    )
    for call in message.tool_calls:
        added.tool_calls.add(
            id=call.id,
            name=call.name,
            arguments_json=call.arguments_json,
            provider_data=provider_data_to_wire(call.provider_data),
        )


def message_from_wire(message: common_pb2.Message) -> Message:
    """Decode one entry of a conversation. A role that this version does not know becomes None."""
    return Message(
        role=_ROLES.get(message.role),
        content=message.content,
        tool_calls=tuple(tool_call_from_wire(call) for call in message.tool_calls),
        tool_call_id=message.tool_call_id,
        provider_data=provider_data_from_wire(message),
    )


async def add_messages(field: Any, messages: Iterable[Message]) -> None:
    """Add a conversation to a repeated field. Yields to the event loop in between."""
    async for message in _in_turns(messages):
        add_message(field, message)


async def messages_from_wire(messages: Iterable[common_pb2.Message]) -> list[Message]:
    """Decode a conversation. Yields to the event loop in between."""
    return [message_from_wire(message) async for message in _in_turns(messages)]


async def _in_turns(messages: Iterable[_M]) -> AsyncGenerator[_M, None]:
    left = _ENTRIES_PER_TURN
    for message in messages:
        left -= 1 + len(message.tool_calls)
        if left < 0:
            left = _ENTRIES_PER_TURN
            await asyncio.sleep(0)
        yield message
