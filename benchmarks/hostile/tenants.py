"""Attacks with calls: what a tenant with a key can ask of the orchestrator, each call well-formed.

As in `strangers`, each is a coroutine function that sends one unit for each turn of its attacker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import count, cycle
from typing import Any

import grpc

from benchmarks.hostile.attacker import Attacker
from deadlinemesh.v1 import common_pb2, orchestrator_pb2, orchestrator_pb2_grpc

__all__ = [
    "hostile_history",
    "large_reads",
    "large_runs",
    "long_answers",
    "many_tool_calls",
    "nested_arguments",
    "unread_large_replies",
]

MOST_AT_ONCE = 64
"""Calls of one attack that are under way together; beyond them it waits."""
LARGE_BYTES = 3_700_000
"""Of a request that just fits into a message."""
REPLY_BYTES = 1_000_000
LISTED_RUNS = 20
LONG_PROMPT = "Write 2000 words about deadlines"
HELD_PROMPT = "Run the long task for 60 seconds"
_GET_RUN = "/deadlinemesh.v1.OrchestratorService/GetRun"


async def hostile_history(attacker: Attacker) -> None:
    """Runs whose history has 8 call ids of 20 kB and 1,500 answers to none of them."""
    calls = [
        common_pb2.ToolCall(id=f"{number}" * 20_000, name="calculate", arguments_json="{}") for number in range(1, 9)
    ]
    history = [_said("go on"), common_pb2.Message(role=common_pb2.ROLE_ASSISTANT, tool_calls=calls)]
    history += [
        common_pb2.Message(role=common_pb2.ROLE_TOOL, tool_call_id=f"none-{number}", content="x")
        for number in range(1500)
    ]
    request = orchestrator_pb2.RunRequest(prompt="go on", model="neighbour", history=history)
    await _in_open_loop(attacker, lambda stub: _to_the_end(stub.Run(request, metadata=attacker.target.metadata)))


async def nested_arguments(attacker: Attacker) -> None:
    """Runs whose history has a call with 3.6 MB of `[[],[],…]` as its arguments."""
    nested = '{"a":[' + "[]," * (LARGE_BYTES // 3) + "[]]}"
    call = common_pb2.ToolCall(id="call-1", name="calculate", arguments_json=nested)
    history = [
        _said("go on"),
        common_pb2.Message(role=common_pb2.ROLE_ASSISTANT, tool_calls=[call]),
        common_pb2.Message(role=common_pb2.ROLE_TOOL, tool_call_id="call-1", content="x"),
        common_pb2.Message(role=common_pb2.ROLE_ASSISTANT, content="done"),
    ]
    request = orchestrator_pb2.RunRequest(prompt="hello", model="neighbour", history=history)
    await _in_open_loop(attacker, lambda stub: _to_the_end(stub.Run(request, metadata=attacker.target.metadata)))


async def large_runs(attacker: Attacker) -> None:
    """Runs of 3.7 MB that last as long as they may."""
    request = orchestrator_pb2.RunRequest(prompt=HELD_PROMPT, model="neighbour", history=_long_history(LARGE_BYTES))
    await _in_open_loop(attacker, lambda stub: _to_the_end(stub.Run(request, metadata=attacker.target.metadata)))


async def large_reads(attacker: Attacker) -> None:
    """GetRun of a run of 3.7 MB and ListRuns of 20 runs with long answers, in turn."""
    metadata = attacker.target.metadata
    stub = _stub(attacker)
    run_id = await _large_run(stub, metadata, LARGE_BYTES)
    long = orchestrator_pb2.RunRequest(prompt=LONG_PROMPT, model="fluent")
    for _ in range(LISTED_RUNS):
        await _to_the_end(stub.Run(long, metadata=metadata))
    get, listed = orchestrator_pb2.GetRunRequest(run_id=run_id), orchestrator_pb2.ListRunsRequest(page_size=100)
    reads = cycle(((stub.GetRun, get), (stub.ListRuns, listed)))

    async def call(_: Any) -> None:
        read, request = next(reads)
        await read(request, metadata=metadata)

    await _in_open_loop(attacker, call)


async def unread_large_replies(attacker: Attacker) -> None:
    """GetRun of a run of 1 MB, whose reply finds a receive window of 0."""
    run_id = await _large_run(_stub(attacker), attacker.target.metadata, REPLY_BYTES)
    body = orchestrator_pb2.GetRunRequest(run_id=run_id).SerializeToString()
    async for peer in attacker.connections(window=0):
        while await attacker.turn(peer):
            peer.call(_GET_RUN, attacker.target.metadata, body)


async def many_tool_calls(attacker: Attacker) -> None:
    """Runs whose first turn asks for 100 tool calls."""
    numbers = count(1)

    async def call(stub: Any) -> None:
        first = next(numbers) * 100
        prompt = ", ".join(f"calculate {first + place} + 1" for place in range(100))
        request = orchestrator_pb2.RunRequest(prompt=prompt, model="fluent", tools=["calculate"])
        await _to_the_end(stub.Run(request, metadata=attacker.target.metadata))

    await _in_open_loop(attacker, call)


async def long_answers(attacker: Attacker) -> None:
    """Runs whose answer comes in some 30,000 pieces."""
    request = orchestrator_pb2.RunRequest(prompt="Write 20000 words about deadlines", model="fluent")
    await _in_open_loop(attacker, lambda stub: _to_the_end(stub.Run(request, metadata=attacker.target.metadata)))


async def _in_open_loop(attacker: Attacker, call: Callable[[Any], Awaitable[Any]]) -> None:
    """Make a call for each turn without waiting for the one before, but for MOST_AT_ONCE."""
    stub, slots = _stub(attacker), asyncio.Semaphore(MOST_AT_ONCE)

    async def one() -> None:
        try:
            with suppress(grpc.aio.AioRpcError):
                await call(stub)
        finally:
            slots.release()

    async with asyncio.TaskGroup() as calls:
        while await attacker.turn():
            await slots.acquire()
            calls.create_task(one())


def _stub(attacker: Attacker) -> Any:
    options = [("grpc.use_local_subchannel_pool", 1)]
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{attacker.target.port}", options=options)
    attacker.hold(channel)
    return orchestrator_pb2_grpc.OrchestratorServiceStub(channel)


async def _large_run(stub: Any, metadata: Any, size: int) -> str:
    """The id of a finished run whose history has so many bytes."""
    request = orchestrator_pb2.RunRequest(prompt="hello", model="fluent", history=_long_history(size))
    first, *_ = [event async for event in stub.Run(request, metadata=metadata)]
    run_id: str = first.started.run_id
    return run_id


def _long_history(size: int) -> list[common_pb2.Message]:
    return [_said("x" * size), common_pb2.Message(role=common_pb2.ROLE_ASSISTANT, content="done")]


def _said(text: str) -> common_pb2.Message:
    return common_pb2.Message(role=common_pb2.ROLE_USER, content=text)


async def _to_the_end(call: Any) -> None:
    async for _ in call:
        pass
