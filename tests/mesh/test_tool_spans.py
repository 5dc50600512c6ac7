"""What a trace says of the agent loop's tool calls, over real connections."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from opentelemetry.trace import SpanKind, StatusCode
from tests.hazards.raw import Spans
from tests.support.rpc import GENEROUS, TOKEN, with_seconds, within_bounds

from deadlinemesh.deadline import SYSTEM_CLOCK, entered
from deadlinemesh.orchestrator import GrpcTools
from deadlinemesh.orchestrator.agent import Agent
from deadlinemesh.orchestrator.assignment import Assignment
from deadlinemesh.orchestrator.shortening import Bounds
from deadlinemesh.orchestrator.upstreams import Upstreams
from deadlinemesh.telemetry import Telemetry
from deadlinemesh.transport import DeadlineInterceptor, MeshChannel, MeshGate, MeshServer, ServerSettings
from deadlinemesh.transport.channels import open_channel
from deadlinemesh.v1 import common_pb2, tool_runner_pb2, tool_runner_pb2_grpc
from deadlinemesh.vocabulary import Message, Role, ToolCall, ToolSpec, TurnEvent, TurnRequest, phase_ledger

MESSAGE_BYTES = 1 << 20


class Answering(tool_runner_pb2_grpc.ToolRunnerServiceServicer):
    """A tool-runner whose one tool answers with this status."""

    def __init__(self, status: common_pb2.ToolStatus) -> None:
        self._status = status

    async def ListTools(
        self, request: tool_runner_pb2.ListToolsRequest, context: Any
    ) -> tool_runner_pb2.ListToolsResponse:
        return tool_runner_pb2.ListToolsResponse(tools=[common_pb2.ToolSpec(name="look")])

    async def CallTool(
        self, request: tool_runner_pb2.CallToolRequest, context: Any
    ) -> AsyncIterator[tool_runner_pb2.CallToolResponse]:
        yield tool_runner_pb2.CallToolResponse(started=tool_runner_pb2.ToolStarted())
        result = tool_runner_pb2.ToolResult(status=self._status, content="seen", transient=self._status != OK)
        yield tool_runner_pb2.CallToolResponse(result=result)


OK = common_pb2.TOOL_STATUS_OK


class AskingOnce:
    """A model that asks for a tool, and then has nothing to say."""

    def __init__(self) -> None:
        self._asks = [ToolCall("call-1", "look", "{}")]

    async def generate(self, turn: TurnRequest) -> AsyncGenerator[TurnEvent, None]:
        if self._asks:
            yield self._asks.pop()


@pytest.mark.parametrize("status", [OK, common_pb2.TOOL_STATUS_FAILED])
async def test_the_span_of_a_tool_call_that_came_to_a_result_is_no_cancelled_one(status: common_pb2.ToolStatus) -> None:
    spans = Spans()
    interceptor = DeadlineInterceptor("tool-runner", MeshGate("tool-runner", TOKEN))
    name = tool_runner_pb2.DESCRIPTOR.services_by_name["ToolRunnerService"].full_name
    serve = tool_runner_pb2_grpc.add_ToolRunnerServiceServicer_to_server
    settings = ServerSettings("127.0.0.1:0", message_bytes=MESSAGE_BYTES)
    server = MeshServer(settings, interceptor, [(name, lambda it: serve(Answering(status), it))])
    assignment = Assignment(
        model="main",
        messages=(Message(Role.USER, "go"),),
        tools=(ToolSpec("look", "Look.", {}, False),),
        max_iterations=2,
        max_output_tokens=0,
        tool_retries=0,
        results=Bounds(1000),
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(server.stop)
        target = f"127.0.0.1:{await server.start()}"
        channel = await stack.enter_async_context(open_channel(target, message_bytes=MESSAGE_BYTES))
        await within_bounds(channel.channel_ready())
        tools = GrpcTools(MeshChannel(channel, TOKEN, spans.tracer))
        ledger = phase_ledger(SYSTEM_CLOCK, SYSTEM_CLOCK.monotonic())
        agent = Agent(assignment, AskingOnce(), tools, Upstreams(Telemetry(), "orchestrator"), ledger, lambda _: None)
        with entered(with_seconds(GENEROUS)):
            await agent.run()
        await within_bounds(spans.first[SpanKind.CLIENT].wait())
    assert [result.content for _, result in agent.finished_calls] == ["seen"]
    span = spans.the(SpanKind.CLIENT)
    assert (span.status.status_code, (span.attributes or {})["rpc.grpc.status_code"]) == (StatusCode.UNSET, 0)
