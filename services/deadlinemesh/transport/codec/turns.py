"""A model turn's request and its events on the wire."""

from __future__ import annotations

from deadlinemesh.errors import Violation
from deadlinemesh.transport.codec.messages import (
    add_messages,
    messages_from_wire,
    provider_data_from_wire,
    provider_data_to_wire,
    tool_call_from_wire,
    tool_call_to_wire,
)
from deadlinemesh.transport.codec.phases import microseconds, spend_from_wire, spend_to_wire
from deadlinemesh.transport.codec.tools import tool_spec_from_wire, tool_spec_to_wire
from deadlinemesh.v1 import common_pb2, llm_proxy_pb2
from deadlinemesh.vocabulary import (
    FinishReason,
    TextDelta,
    ToolCall,
    ToolChoice,
    ToolSpec,
    TurnEvent,
    TurnFinished,
    TurnRequest,
    TurnStarted,
    Writing,
)

__all__ = ["turn_event_from_wire", "turn_event_to_wire", "turn_from_wire", "turn_to_wire"]

_CHOICES = {getattr(llm_proxy_pb2, f"TOOL_CHOICE_{choice.name}"): choice for choice in ToolChoice}
_CHOICES_TO_WIRE = {choice: value for value, choice in _CHOICES.items()}
_REASONS = {
    llm_proxy_pb2.FINISH_REASON_UNSPECIFIED: FinishReason.UNKNOWN,
    llm_proxy_pb2.FINISH_REASON_STOP: FinishReason.STOP,
    llm_proxy_pb2.FINISH_REASON_TOOL_CALLS: FinishReason.TOOL_CALLS,
    llm_proxy_pb2.FINISH_REASON_LENGTH: FinishReason.LENGTH,
    llm_proxy_pb2.FINISH_REASON_CONTENT_FILTER: FinishReason.CONTENT_FILTER,
}
_REASONS_TO_WIRE = {reason: value for value, reason in _REASONS.items()}


async def turn_to_wire(turn: TurnRequest) -> llm_proxy_pb2.GenerateRequest:
    """Encode a turn's request. Yields to the event loop in between."""
    request = llm_proxy_pb2.GenerateRequest(
        model=turn.model,
        tools=[tool_spec_to_wire(tool) for tool in turn.tools],
        tool_choice=_CHOICES_TO_WIRE[turn.tool_choice],
        max_output_tokens=turn.max_output_tokens,
    )
    await add_messages(request.messages, turn.messages)
    return request


async def turn_from_wire(request: llm_proxy_pb2.GenerateRequest, found: list[Violation]) -> TurnRequest:
    """Decode a turn's request. Adds a violation to `found` for each tool without a
    usable schema.
    """
    return TurnRequest(
        model=request.model,
        messages=tuple(await messages_from_wire(request.messages)),
        tools=tuple(_tool_from_wire(tool, f"tools[{index}]", found) for index, tool in enumerate(request.tools)),
        tool_choice=_CHOICES.get(request.tool_choice, ToolChoice.AUTO),
        max_output_tokens=request.max_output_tokens,
    )


def _tool_from_wire(tool: common_pb2.ToolSpec, field: str, found: list[Violation]) -> ToolSpec:
    try:
        return tool_spec_from_wire(tool)
    except ValueError as error:
        found.append(Violation(f"{field}.arguments_schema_json", str(error)))
        return ToolSpec(tool.name, tool.description, {}, tool.idempotent)


def turn_event_to_wire(event: TurnEvent) -> llm_proxy_pb2.GenerateResponse:
    """Encode an event of a turn."""
    match event:
        case TextDelta(text):
            return llm_proxy_pb2.GenerateResponse(text=llm_proxy_pb2.TextDelta(text=text))
        case Writing():
            return llm_proxy_pb2.GenerateResponse(writing=llm_proxy_pb2.Writing())
        case ToolCall():
            return llm_proxy_pb2.GenerateResponse(tool_call=tool_call_to_wire(event))
        case TurnStarted(model, queued):
            started = llm_proxy_pb2.GenerateStarted(model=model, queue_us=microseconds(queued))
            return llm_proxy_pb2.GenerateResponse(started=started)
        case TurnFinished():
            return llm_proxy_pb2.GenerateResponse(finished=_finished_to_wire(event))


def turn_event_from_wire(response: llm_proxy_pb2.GenerateResponse) -> TurnEvent | None:
    """Decode an event of a turn; None for one that this version does not know."""
    match response.WhichOneof("event"):
        case "started":
            return TurnStarted(response.started.model, response.started.queue_us / 1_000_000)
        case "text":
            return TextDelta(response.text.text)
        case "writing":
            return Writing()
        case "tool_call":
            return tool_call_from_wire(response.tool_call)
        case "finished":
            return _finished_from_wire(response.finished)
    return None


def _finished_to_wire(event: TurnFinished) -> llm_proxy_pb2.GenerateFinished:
    return llm_proxy_pb2.GenerateFinished(
        reason=_REASONS_TO_WIRE[event.finish_reason],
        usage=common_pb2.Usage(input_tokens=event.input_tokens, output_tokens=event.output_tokens, model_calls=1),
        spend=None if event.spend is None else spend_to_wire(event.spend),
        provider_data=provider_data_to_wire(event.provider_data),
    )


def _finished_from_wire(finished: llm_proxy_pb2.GenerateFinished) -> TurnFinished:
    return TurnFinished(
        finish_reason=_REASONS.get(finished.reason, FinishReason.UNKNOWN),
        input_tokens=finished.usage.input_tokens,
        output_tokens=finished.usage.output_tokens,
        provider_data=provider_data_from_wire(finished),
        spend=spend_from_wire(finished.spend) if finished.HasField("spend") else None,
    )
