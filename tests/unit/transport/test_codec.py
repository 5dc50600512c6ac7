"""The vocabulary on the wire and back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.protobuf.message import Message as WireMessage

from deadlinemesh.errors import Violation
from deadlinemesh.transport import codec
from deadlinemesh.v1 import common_pb2, llm_proxy_pb2, tool_runner_pb2
from deadlinemesh.vocabulary import (
    FinishReason,
    HopSpend,
    Message,
    Phase,
    ProviderData,
    Role,
    TextDelta,
    ToolCall,
    ToolChoice,
    ToolEvent,
    ToolFinished,
    ToolProgress,
    ToolResult,
    ToolSpec,
    ToolStarted,
    ToolStatus,
    TurnEvent,
    TurnFinished,
    TurnRequest,
    TurnStarted,
    Writing,
)

SIGNATURE = ProviderData("anthropic", b"\x00\xff")
CALL = ToolCall("call_1", "search", '{"query": "ü"}', SIGNATURE)
SPEND = HopSpend("llm-proxy", 1.5, {Phase.LLM_QUEUE: 0.25, Phase.LLM_STREAM: 1.25})
LOOK = ToolSpec("look", "Look.", {"type": "object", "properties": {"at": {"type": "string"}}}, True)

TURN_EVENTS: list[TurnEvent] = [
    TurnStarted("demo", 0.25),
    TextDelta("word"),
    Writing(),
    CALL,
    ToolCall("", "", ""),
    *(TurnFinished(reason, 11, 3) for reason in FinishReason),
    TurnFinished(FinishReason.STOP, 11, 3, SIGNATURE, SPEND),
]
TOOL_EVENTS: list[ToolEvent] = [
    ToolStarted(0.25),
    ToolProgress(0.5, "half"),
    *(ToolFinished(ToolResult(status, "seen")) for status in ToolStatus),
    ToolFinished(
        ToolResult(ToolStatus.FAILED, "busy", True, 2.5), HopSpend("tool-runner", 1.0, {Phase.TOOL_CALL: 1.0})
    ),
]
MESSAGES = [
    Message(None, "from a newer version"),
    *(Message(role, "said") for role in Role),
    Message(Role.ASSISTANT, "", (CALL, ToolCall("call_2", "look", "{}")), provider_data=SIGNATURE),
    Message(Role.TOOL, "seen", (), "call_1"),
]


def sent(message: Any) -> Any:
    """The message as its receiver parses it."""
    assert isinstance(message, WireMessage)
    return type(message).FromString(message.SerializeToString())


@pytest.mark.parametrize("event", TURN_EVENTS, ids=repr)
def test_turn_event_survives_the_wire(event: TurnEvent) -> None:
    assert codec.turn_event_from_wire(sent(codec.turn_event_to_wire(event))) == event


@pytest.mark.parametrize("event", TOOL_EVENTS, ids=repr)
def test_tool_event_survives_the_wire(event: ToolEvent) -> None:
    assert codec.tool_event_from_wire(sent(codec.tool_event_to_wire(event))) == event


def test_tool_spec_survives_the_wire() -> None:
    assert codec.tool_spec_from_wire(sent(codec.tool_spec_to_wire(LOOK))) == LOOK


@pytest.mark.parametrize("phase", Phase)
def test_phase_survives_the_wire(phase: Phase) -> None:
    assert codec.phase_from_wire(codec.phase_to_wire(phase)) is phase


@pytest.mark.parametrize("choice", ToolChoice)
def test_turn_request_survives_the_wire(choice: ToolChoice) -> None:
    turn = TurnRequest("demo", tuple(MESSAGES), (LOOK,), choice, 100)
    found: list[Violation] = []

    async def there_and_back() -> TurnRequest:
        return await codec.turn_from_wire(sent(await codec.turn_to_wire(turn)), found)

    assert asyncio.run(there_and_back()) == turn
    assert not found


def test_unknown_values_of_a_newer_peer_are_passed_over() -> None:
    assert codec.turn_event_from_wire(llm_proxy_pb2.GenerateResponse()) is None
    assert codec.tool_event_from_wire(tool_runner_pb2.CallToolResponse()) is None
    assert codec.phase_from_wire(99) is None
    newer = common_pb2.HopSpend(hop="llm-proxy", phases=[common_pb2.PhaseSpend(phase=99, spent_us=1)])  # type: ignore[arg-type]
    assert codec.spend_from_wire(newer) == HopSpend("llm-proxy", 0.0, {})


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ("{", "not JSON: "),
        ("[]", "must be the JSON Schema of an object"),
        ("3", "must be the JSON Schema of an object"),
        ('{"properties": 3}', "must be the JSON Schema of an object"),
        ("[" * 100_000, "not JSON: "),
    ],
    ids=lambda text: text[:20],
)
def test_unusable_schema_is_a_violation_of_its_field(schema: str, told: str) -> None:
    request = llm_proxy_pb2.GenerateRequest(tools=[common_pb2.ToolSpec(name="look", arguments_schema_json=schema)])
    found: list[Violation] = []
    turn = asyncio.run(codec.turn_from_wire(request, found))
    assert [violation.field for violation in found] == ["tools[0].arguments_schema_json"]
    assert found[0].description.startswith(told)
    assert turn.tools == (ToolSpec("look", "", {}),)


def test_empty_schema_allows_no_arguments() -> None:
    assert codec.tool_spec_from_wire(common_pb2.ToolSpec()).schema == {"type": "object", "properties": {}}


@pytest.mark.parametrize(("seconds", "sent_us"), [(0.25, 250_000), (-1.0, 0), (1e18, 366 * 86400 * 1_000_000)])
def test_durations_are_clamped(seconds: float, sent_us: int) -> None:
    assert codec.microseconds(seconds) == sent_us


@pytest.mark.parametrize(
    ("reason", "truncated"),
    [
        (FinishReason.STOP, False),
        (FinishReason.TOOL_CALLS, False),
        (FinishReason.UNKNOWN, False),
        (FinishReason.LENGTH, True),
        (FinishReason.CONTENT_FILTER, True),
    ],
)
def test_answer_is_whole_unless_cut_or_withheld(reason: FinishReason, truncated: bool) -> None:
    assert TurnFinished(reason, 0, 0).truncated is truncated
