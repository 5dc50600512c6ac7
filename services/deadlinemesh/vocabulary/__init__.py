"""The types that orchestrator, llm-proxy and tool-runner share.

    messages.py   a conversation: roles, messages, tool calls
    history.py    the rules of a valid history
    turns.py      one model turn: its request and its events
    tools.py      one tool call: a tool's description, its events, its result
    phases.py     the phases of a run, and their ledger
    hops.py       the services: names, ports and gRPC services

`transport/codec/` maps them to and from the wire.
"""

from deadlinemesh.vocabulary.history import (
    LONGEST_ARGUMENTS,
    LONGEST_CALL_ID,
    LONGEST_TOOL_NAME,
    history_violations,
)
from deadlinemesh.vocabulary.messages import Message, ProviderData, Role, ToolCall
from deadlinemesh.vocabulary.phases import HopSpend, Phase, phase_ledger
from deadlinemesh.vocabulary.tools import (
    ToolEvent,
    ToolFinished,
    ToolProgress,
    ToolResult,
    ToolSpec,
    ToolStarted,
    ToolStatus,
)
from deadlinemesh.vocabulary.turns import (
    FinishReason,
    ModelEvent,
    TextDelta,
    ToolChoice,
    TurnEvent,
    TurnFinished,
    TurnRequest,
    TurnStarted,
    Writing,
)

__all__ = [
    "LONGEST_ARGUMENTS",
    "LONGEST_CALL_ID",
    "LONGEST_TOOL_NAME",
    "FinishReason",
    "HopSpend",
    "Message",
    "ModelEvent",
    "Phase",
    "ProviderData",
    "Role",
    "TextDelta",
    "ToolCall",
    "ToolChoice",
    "ToolEvent",
    "ToolFinished",
    "ToolProgress",
    "ToolResult",
    "ToolSpec",
    "ToolStarted",
    "ToolStatus",
    "TurnEvent",
    "TurnFinished",
    "TurnRequest",
    "TurnStarted",
    "Writing",
    "history_violations",
    "phase_ledger",
]
