"""The gRPC face of the llm-proxy: turns the wire's messages into the domain's and back, and does nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from deadlinemesh.deadline import SYSTEM_CLOCK, Clock
from deadlinemesh.errors import Violation
from deadlinemesh.llm_proxy.conversation import (
    FinishReason,
    Message,
    Role,
    TextDelta,
    ToolCall,
    ToolCallReady,
    ToolChoice,
    ToolSpec,
    TurnRequest,
    check,
    parsed_schema,
)
from deadlinemesh.llm_proxy.providers import Provider, provider_of
from deadlinemesh.llm_proxy.service import HOP, ModelService, TurnFinished, TurnProgress, TurnStarted
from deadlinemesh.policy.model import Policy
from deadlinemesh.v1 import common_pb2, llm_proxy_pb2, llm_proxy_pb2_grpc

__all__ = ["HOP", "LlmProxyServicer", "build"]

_ROLES = {
    common_pb2.ROLE_SYSTEM: Role.SYSTEM,
    common_pb2.ROLE_USER: Role.USER,
    common_pb2.ROLE_ASSISTANT: Role.ASSISTANT,
    common_pb2.ROLE_TOOL: Role.TOOL,
}
_CHOICES = {
    llm_proxy_pb2.TOOL_CHOICE_NONE: ToolChoice.NONE,
    llm_proxy_pb2.TOOL_CHOICE_REQUIRED: ToolChoice.REQUIRED,
}
_REASONS = {
    FinishReason.STOP: llm_proxy_pb2.FINISH_REASON_STOP,
    FinishReason.TOOL_CALLS: llm_proxy_pb2.FINISH_REASON_TOOL_CALLS,
    FinishReason.LENGTH: llm_proxy_pb2.FINISH_REASON_LENGTH,
    FinishReason.CONTENT_FILTER: llm_proxy_pb2.FINISH_REASON_CONTENT_FILTER,
}


def build(
    policy: Policy, clock: Clock = SYSTEM_CLOCK, providers: Mapping[str, Provider] | None = None
) -> LlmProxyServicer:
    """The servicer for `policy`. `providers`, by the models' names, stand in for those that policy describes.

    Raises ValueError where policy wants a key that the environment does not hold.
    """
    if providers is None:
        providers = {name: provider_of(model) for name, model in policy.models.items()}
    return LlmProxyServicer(ModelService(policy, providers, clock))


class LlmProxyServicer(llm_proxy_pb2_grpc.LlmProxyServiceServicer):
    """Serves `service` over gRPC. The inbound interceptor gives each call its scope and maps what is raised."""

    def __init__(self, service: ModelService) -> None:
        self._service = service

    async def Generate(
        self, request: llm_proxy_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[llm_proxy_pb2.GenerateResponse]:
        async with aclosing(self._service.generate(_turn(request))) as events:
            async for event in events:
                yield _response(event)

    async def ListModels(
        self, request: llm_proxy_pb2.ListModelsRequest, context: Any
    ) -> llm_proxy_pb2.ListModelsResponse:
        return llm_proxy_pb2.ListModelsResponse(
            models=[
                llm_proxy_pb2.Model(
                    name=name, provider=model.provider, slots=model.slots, max_output_tokens=model.max_output_tokens
                )
                for name, model in self._service.models().items()
            ]
        )

    async def aclose(self) -> None:
        """Close the providers, once no call is being served."""
        await self._service.aclose()


def _turn(request: llm_proxy_pb2.GenerateRequest) -> TurnRequest:
    found: list[Violation] = []
    turn = TurnRequest(
        model=request.model,
        messages=tuple(_message(message) for message in request.messages),
        tools=tuple(_tool(tool, f"tools[{index}]", found) for index, tool in enumerate(request.tools)),
        tool_choice=_CHOICES.get(request.tool_choice, ToolChoice.AUTO),
        max_output_tokens=request.max_output_tokens,
    )
    if found:
        check(turn, found)
    return turn


def _message(message: common_pb2.Message) -> Message:
    return Message(
        role=_ROLES.get(message.role),
        content=message.content,
        tool_calls=tuple(ToolCall(call.id, call.name, call.arguments_json) for call in message.tool_calls),
        tool_call_id=message.tool_call_id,
    )


def _tool(tool: common_pb2.ToolSpec, field: str, found: list[Violation]) -> ToolSpec:
    schema = parsed_schema(tool.arguments_schema_json, f"{field}.arguments_schema_json", found)
    return ToolSpec(tool.name, tool.description, schema, tool.idempotent)


def _response(event: TurnProgress) -> llm_proxy_pb2.GenerateResponse:
    match event:
        case TextDelta(text):
            return llm_proxy_pb2.GenerateResponse(text=llm_proxy_pb2.TextDelta(text=text))
        case ToolCallReady(call):
            return llm_proxy_pb2.GenerateResponse(
                tool_call=common_pb2.ToolCall(id=call.id, name=call.name, arguments_json=call.arguments_json)
            )
        case TurnStarted(model, queued):
            return llm_proxy_pb2.GenerateResponse(
                started=llm_proxy_pb2.GenerateStarted(model=model, queue_us=_microseconds(queued))
            )
        case TurnFinished():
            return llm_proxy_pb2.GenerateResponse(finished=_finished(event))


def _finished(event: TurnFinished) -> llm_proxy_pb2.GenerateFinished:
    return llm_proxy_pb2.GenerateFinished(
        reason=_REASONS.get(event.ended.finish_reason, llm_proxy_pb2.FINISH_REASON_UNSPECIFIED),
        usage=common_pb2.Usage(
            input_tokens=event.ended.input_tokens, output_tokens=event.ended.output_tokens, model_calls=1
        ),
        spend=common_pb2.HopSpend(
            hop=HOP,
            elapsed_us=_microseconds(event.elapsed),
            phases=[
                common_pb2.PhaseSpend(phase=f"PHASE_{phase.value.upper()}", spent_us=_microseconds(seconds))
                for phase, seconds in event.spent.items()
            ],
        ),
    )


def _microseconds(seconds: float) -> int:
    return round(seconds * 1_000_000)
