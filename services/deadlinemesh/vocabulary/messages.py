"""A conversation between a user, a model and its tools."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Message", "ProviderData", "Role", "ToolCall"]


class Role(StrEnum):
    """The author of a message. Names are those of the `Role` enum in `protos/`, in lower case."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@dataclass(frozen=True, slots=True)
class ProviderData:
    """Opaque data of one provider, such as a signature.

    It is returned, unread, to that provider only.
    """

    provider: str
    """The kind of provider that wrote it, as in policy: `openai`, `anthropic`."""
    data: bytes


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A model's request to call a tool. `id` is unique within the run."""

    id: str
    name: str
    arguments_json: str
    provider_data: ProviderData | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation. `role` is None if this version does not know the role."""

    role: Role | None
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    """The call that a tool's message answers; empty in other messages."""
    provider_data: ProviderData | None = None
    """Data of the provider that wrote an assistant's message."""
