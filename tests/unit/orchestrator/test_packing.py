"""What is kept of a finished run takes little memory and tells the same."""

from __future__ import annotations

import asyncio
import pickle
from dataclasses import replace
from typing import Any

import grpc
from tests.support.virtual import in_virtual_time

from deadlinemesh.errors import Cause
from deadlinemesh.orchestrator.events import (
    Outcome,
    PhaseChanged,
    RunEvent,
    RunFinished,
    RunStarted,
    Timed,
    ToolCallFinished,
    ToolCallProgress,
    ToolCallStarted,
    Usage,
)
from deadlinemesh.orchestrator.packing import pack, unpack
from deadlinemesh.orchestrator.run import PACKED_UP_TO
from deadlinemesh.policy import default_policy
from deadlinemesh.testing import virtual_time
from deadlinemesh.testing.mesh import MemoryMesh
from deadlinemesh.v1 import orchestrator_pb2, orchestrator_pb2_grpc
from deadlinemesh.vocabulary import HopSpend, Message, Phase, Role, TextDelta, ToolCall, ToolStatus

CALL = ToolCall("call-1", "calculate", '{"expression": "2 + 3"}')
SPEND = HopSpend("tool-runner", 0.5, {Phase.TOOL_CALL: 0.5})
EVENTS: tuple[RunEvent, ...] = (
    RunStarted(),
    PhaseChanged(Phase.LLM_STREAM, 1, 20.5, {Phase.ADMISSION: 0.1}),
    TextDelta("Grüße, 世界"),
    ToolCallStarted(CALL, 1, 20.0),
    ToolCallProgress("call-1", "half", 0.5),
    ToolCallFinished(CALL, ToolStatus.OK, "5", 0.5, SPEND),
    RunFinished(
        *(Outcome.DEADLINE_SPENT, Cause.DEADLINE_SPENT, "spent", "five", True, 30.0, 29.9),
        *({Phase.TOOL_CALL: 0.5}, Usage(1, 2, 3, 4), 2),
    ),
)
HISTORY = (Message(Role.USER, "2 + 3?"), Message(Role.ASSISTANT, "", (CALL,)), Message(Role.TOOL, "5", (), "call-1"))


def test_events_of_every_kind_come_back() -> None:
    timed = tuple(Timed(float(number), event) for number, event in enumerate(EVENTS))
    assert unpack(pack(timed, HISTORY)) == (timed, HISTORY)


def test_packed_record_is_a_tenth_of_the_objects() -> None:
    delta = TextDelta("about deadlines " * 10)
    timed = tuple(replace(Timed(0.0, delta), elapsed=float(number)) for number in range(100))
    assert len(pack(timed, HISTORY)) < 0.1 * len(pickle.dumps(timed)) + 500


async def told(mesh: MemoryMesh, request: orchestrator_pb2.RunRequest) -> list[orchestrator_pb2.RunResponse]:
    stub = orchestrator_pb2_grpc.OrchestratorServiceStub(mesh.channel)
    return [event async for event in stub.Run(request, metadata=mesh.credentials("bolt"))]


@in_virtual_time
async def test_finished_run_tells_latecomers_the_same() -> None:
    mesh = MemoryMesh(default_policy(), virtual_time.clock())
    for prompt in ("calculate 2 + 3", "x" * PACKED_UP_TO):  # packed, and too large for it
        request = orchestrator_pb2.RunRequest(prompt=prompt, request_id=prompt[:9])
        live = await told(mesh, request)
        await mesh.idle()
        late = await told(mesh, request)
        assert late[0].started.attached
        assert not live[0].started.attached
        assert "".join(one.text.text for one in late) == "".join(one.text.text for one in live)
        assert [one.WhichOneof("event") for one in late if not one.HasField("text")] == [
            one.WhichOneof("event") for one in live if not one.HasField("text")
        ]
        stub = orchestrator_pb2_grpc.OrchestratorServiceStub(mesh.channel)
        found = await stub.GetRun(
            orchestrator_pb2.GetRunRequest(run_id=live[0].started.run_id), metadata=mesh.credentials("bolt")
        )
        assert prompt in [message.content for message in found.messages]
        assert found.messages[-1].content == live[-1].finished.answer


@in_virtual_time
async def test_reader_that_is_behind_gets_the_rest() -> None:
    mesh = MemoryMesh(default_policy(), virtual_time.clock())
    stub = orchestrator_pb2_grpc.OrchestratorServiceStub(mesh.channel)
    request = orchestrator_pb2.RunRequest(prompt="calculate 2 + 3", request_id="one")
    metadata = mesh.credentials("bolt")
    slow = stub.Run(request, metadata=metadata)
    seen: list[Any] = [await slow.read()]
    await told(mesh, request)
    await asyncio.sleep(5.0)
    mesh.flush()
    while (event := await slow.read()) is not grpc.aio.EOF:
        seen.append(event)
    assert [one.WhichOneof("event") for one in seen][-1] == "finished"
    assert seen[-1].finished.outcome == orchestrator_pb2.OUTCOME_COMPLETED
