"""The gRPC face of the llm-proxy: turns the wire's messages into the domain's and back, and does nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any

from deadlinemesh.conversation import ToolSpec
from deadlinemesh.deadline import SYSTEM_CLOCK, Clock
from deadlinemesh.errors import Violation
from deadlinemesh.llm_proxy.coalescing import coalesced
from deadlinemesh.llm_proxy.conversation import (
    FinishReason,
    TextDelta,
    ToolCallReady,
    ToolChoice,
    TurnRequest,
    Writing,
    check,
    parsed_schema,
)
from deadlinemesh.llm_proxy.providers import Provider, providers_of
from deadlinemesh.llm_proxy.service import HOP, ModelService, TurnFinished, TurnProgress, TurnStarted
from deadlinemesh.policy import GoOver
from deadlinemesh.policy.model import Policy
from deadlinemesh.telemetry import Telemetry
from deadlinemesh.transport.messages import hop_spend, messages_from_wire, microseconds, tool_call_to_wire
from deadlinemesh.v1 import common_pb2, llm_proxy_pb2, llm_proxy_pb2_grpc

__all__ = ["HOP", "LlmProxyServicer", "build"]

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
    policy: Policy,
    clock: Clock = SYSTEM_CLOCK,
    providers: Mapping[str, Provider] | None = None,
    telemetry: Telemetry | None = None,
) -> LlmProxyServicer:
    """The servicer for `policy`. `providers`, by the models' names, stand in for those that policy describes.

    A model whose key the environment does not hold refuses its turns. Raises ValueError where no other model is left.
    """
    if providers is None:
        providers = providers_of(policy.models)
    return LlmProxyServicer(ModelService(policy, providers, clock, telemetry))


class LlmProxyServicer(llm_proxy_pb2_grpc.LlmProxyServiceServicer):
    """Serves `service` over gRPC. The inbound interceptor gives each call its scope and maps what is raised."""

    def __init__(self, service: ModelService) -> None:
        self._service = service

    async def Generate(
        self, request: llm_proxy_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[llm_proxy_pb2.GenerateResponse]:
        async with aclosing(coalesced(self._service.generate(await _turn(request)))) as events:
            async for event in events:
                yield _response(event)

    async def ListModels(
        self, request: llm_proxy_pb2.ListModelsRequest, context: Any
    ) -> llm_proxy_pb2.ListModelsResponse:
        return llm_proxy_pb2.ListModelsResponse(
            models=[
                llm_proxy_pb2.Model(
                    name=name,
                    provider=model.provider,
                    slots=model.slots if self._service.is_usable(name) else 0,
                    max_output_tokens=model.max_output_tokens,
                )
                for name, model in self._service.models().items()
            ]
        )

    def prepared(self, policy: Policy) -> GoOver:
        """Make the providers of `policy`. The rest closes the old one's.

        Raises ValueError where the environment holds no key for any of its models.
        """
        return partial(self._service.replace, policy, providers_of(policy.models))

    async def aclose(self) -> None:
        """Close the providers, once no call is being served."""
        await self._service.aclose()


async def _turn(request: llm_proxy_pb2.GenerateRequest) -> TurnRequest:
    found: list[Violation] = []
    turn = TurnRequest(
        model=request.model,
        messages=tuple(await messages_from_wire(request.messages)),
        tools=tuple(_tool(tool, f"tools[{index}]", found) for index, tool in enumerate(request.tools)),
        tool_choice=_CHOICES.get(request.tool_choice, ToolChoice.AUTO),
        max_output_tokens=request.max_output_tokens,
    )
    if found:
        check(turn, found)
    return turn


def _tool(tool: common_pb2.ToolSpec, field: str, found: list[Violation]) -> ToolSpec:
    schema = parsed_schema(tool.arguments_schema_json, f"{field}.arguments_schema_json", found)
    return ToolSpec(tool.name, tool.description, schema, tool.idempotent)


def _response(event: TurnProgress) -> llm_proxy_pb2.GenerateResponse:
    match event:
        case TextDelta(text):
            return llm_proxy_pb2.GenerateResponse(text=llm_proxy_pb2.TextDelta(text=text))
        case Writing():
            return llm_proxy_pb2.GenerateResponse(writing=llm_proxy_pb2.Writing())
        case ToolCallReady(call):
            return llm_proxy_pb2.GenerateResponse(tool_call=tool_call_to_wire(call))
        case TurnStarted(model, queued):
            return llm_proxy_pb2.GenerateResponse(
                started=llm_proxy_pb2.GenerateStarted(model=model, queue_us=microseconds(queued))
            )
        case TurnFinished():
            return llm_proxy_pb2.GenerateResponse(finished=_finished(event))


def _finished(event: TurnFinished) -> llm_proxy_pb2.GenerateFinished:
    return llm_proxy_pb2.GenerateFinished(
        reason=_REASONS.get(event.ended.finish_reason, llm_proxy_pb2.FINISH_REASON_UNSPECIFIED),
        usage=common_pb2.Usage(
            input_tokens=event.ended.input_tokens, output_tokens=event.ended.output_tokens, model_calls=1
        ),
        spend=hop_spend(HOP, event.elapsed, event.spent),
    )
