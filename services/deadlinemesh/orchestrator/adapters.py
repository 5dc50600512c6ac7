"""The loop's ports over gRPC: the llm-proxy and the tool-runner as the orchestrator calls them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

import grpc

from deadlinemesh.conversation import Message, ToolCall, ToolSpec
from deadlinemesh.orchestrator.ports import (
    ModelEvent,
    Spend,
    TextDelta,
    ToolEvent,
    ToolProgress,
    ToolResult,
    ToolStarted,
    ToolStatus,
    TurnFinished,
    TurnStarted,
    Writing,
)
from deadlinemesh.transport import MeshChannel, error_from
from deadlinemesh.transport.messages import (
    add_messages,
    phase_from_wire,
    tool_call_from_wire,
    tool_spec_from_wire,
    tool_spec_to_wire,
)
from deadlinemesh.v1 import common_pb2, llm_proxy_pb2, llm_proxy_pb2_grpc, tool_runner_pb2, tool_runner_pb2_grpc

__all__ = ["GrpcModels", "GrpcTools"]

_TRUNCATED = (llm_proxy_pb2.FINISH_REASON_LENGTH, llm_proxy_pb2.FINISH_REASON_CONTENT_FILTER)

_STATUSES = {getattr(common_pb2, f"TOOL_STATUS_{status.name}"): status for status in ToolStatus}


class GrpcModels:
    """`ModelPort` on an llm-proxy."""

    def __init__(self, channel: MeshChannel) -> None:
        self._stub: Any = llm_proxy_pb2_grpc.LlmProxyServiceStub(channel)  # its streams are StreamingCalls

    async def generate(
        self, model: str, messages: Sequence[Message], tools: Sequence[ToolSpec], max_output_tokens: int
    ) -> AsyncGenerator[ModelEvent, None]:
        """See `ModelPort.generate`."""
        request = llm_proxy_pb2.GenerateRequest(
            model=model,
            tools=[tool_spec_to_wire(tool) for tool in tools],
            tool_choice=llm_proxy_pb2.TOOL_CHOICE_AUTO if tools else llm_proxy_pb2.TOOL_CHOICE_NONE,
            max_output_tokens=max_output_tokens,
        )
        await add_messages(request.messages, messages)
        try:
            async with self._stub.Generate(request, kind=model) as call:
                async for response in call:
                    event = _model_event(response)
                    if event is not None:
                        yield event
        except grpc.aio.AioRpcError as error:
            raise error_from(error, "llm-proxy") from None


class GrpcTools:
    """`ToolPort` on a tool-runner."""

    def __init__(self, channel: MeshChannel) -> None:
        self._stub: Any = tool_runner_pb2_grpc.ToolRunnerServiceStub(channel)  # its streams are StreamingCalls

    async def specs(self) -> tuple[ToolSpec, ...]:
        """See `ToolPort.specs`."""
        try:
            listed = await self._stub.ListTools(tool_runner_pb2.ListToolsRequest())
        except grpc.aio.AioRpcError as error:
            raise error_from(error, "tool-runner") from None
        return tuple(tool_spec_from_wire(spec) for spec in listed.tools)

    async def call(self, call: ToolCall) -> AsyncGenerator[ToolEvent, None]:
        """See `ToolPort.call`."""
        request = tool_runner_pb2.CallToolRequest(call_id=call.id, name=call.name, arguments_json=call.arguments_json)
        try:
            async with self._stub.CallTool(request, kind=call.name) as stream:
                async for response in stream:
                    event = _tool_event(response)
                    if event is not None:
                        yield event
        except grpc.aio.AioRpcError as error:
            raise error_from(error, "tool-runner") from None


def _model_event(response: llm_proxy_pb2.GenerateResponse) -> ModelEvent | None:
    match response.WhichOneof("event"):
        case "started":
            return TurnStarted()
        case "text":
            return TextDelta(response.text.text)
        case "writing":
            return Writing()
        case "tool_call":
            return tool_call_from_wire(response.tool_call)
        case "finished":
            finished = response.finished
            truncated = finished.reason in _TRUNCATED
            return TurnFinished(finished.usage.input_tokens, finished.usage.output_tokens, truncated)
    return None  # an event of a newer llm-proxy


def _tool_event(response: tool_runner_pb2.CallToolResponse) -> ToolEvent | None:
    match response.WhichOneof("event"):
        case "started":
            return ToolStarted()
        case "progress":
            return ToolProgress(response.progress.message, response.progress.fraction)
        case "result":
            result = response.result
            return ToolResult(
                status=_STATUSES.get(result.status, ToolStatus.FAILED),
                content=result.content,
                transient=result.transient,
                retry_after=result.retry_after_us / 1_000_000 if result.retry_after_us else None,
                spend=_spend(result.spend) if result.HasField("spend") else None,
            )
    return None  # an event of a newer tool-runner


def _spend(spend: common_pb2.HopSpend) -> Spend:
    phases = {phase: one.spent_us / 1_000_000 for one in spend.phases if (phase := phase_from_wire(one.phase))}
    return Spend(spend.hop, spend.elapsed_us / 1_000_000, phases)
