"""The agent loop's ports over gRPC: the llm-proxy and the tool-runner."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import grpc

from deadlinemesh.transport import MeshChannel, error_from
from deadlinemesh.transport.codec import (
    tool_event_from_wire,
    tool_spec_from_wire,
    turn_event_from_wire,
    turn_to_wire,
)
from deadlinemesh.v1 import llm_proxy_pb2_grpc, tool_runner_pb2, tool_runner_pb2_grpc
from deadlinemesh.vocabulary import ToolCall, ToolEvent, ToolSpec, TurnEvent, TurnRequest
from deadlinemesh.vocabulary.hops import LLM_PROXY, TOOL_RUNNER

__all__ = ["GrpcModels", "GrpcTools"]


class GrpcModels:
    """`ModelPort` over gRPC: calls an llm-proxy."""

    def __init__(self, channel: MeshChannel) -> None:
        self._stub: Any = llm_proxy_pb2_grpc.LlmProxyServiceStub(channel)  # streams: StreamingCall

    async def generate(self, turn: TurnRequest) -> AsyncGenerator[TurnEvent, None]:
        """See `ModelPort.generate`."""
        request = await turn_to_wire(turn)
        try:
            async with self._stub.Generate(request, kind=turn.model) as call:
                async for response in call:
                    if (event := turn_event_from_wire(response)) is not None:
                        yield event
        except grpc.aio.AioRpcError as error:
            raise error_from(error, LLM_PROXY) from None


class GrpcTools:
    """`ToolPort` over gRPC: calls a tool-runner."""

    def __init__(self, channel: MeshChannel) -> None:
        self._stub: Any = tool_runner_pb2_grpc.ToolRunnerServiceStub(channel)  # StreamingCalls too

    async def specs(self) -> tuple[ToolSpec, ...]:
        """See `ToolPort.specs`."""
        try:
            listed = await self._stub.ListTools(tool_runner_pb2.ListToolsRequest())
        except grpc.aio.AioRpcError as error:
            raise error_from(error, TOOL_RUNNER) from None
        return tuple(tool_spec_from_wire(spec) for spec in listed.tools)

    async def call(self, call: ToolCall) -> AsyncGenerator[ToolEvent, None]:
        """See `ToolPort.call`."""
        request = tool_runner_pb2.CallToolRequest(call_id=call.id, name=call.name, arguments_json=call.arguments_json)
        try:
            async with self._stub.CallTool(request, kind=call.name) as stream:
                async for response in stream:
                    if (event := tool_event_from_wire(response)) is not None:
                        yield event
        except grpc.aio.AioRpcError as error:
            raise error_from(error, TOOL_RUNNER) from None
