"""A worker's reply belongs to the call that was asked."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

from deadlinemesh.deadline import DeadlineContext, entered
from deadlinemesh.tool_runner.outcome import ToolError
from deadlinemesh.tool_runner.workers.frames import packed
from deadlinemesh.tool_runner.workers.worker import Worker, WorkerCall

CONTEXT = DeadlineContext("acme", 1e12, "free", "1" * 32, "run_1", 0.0)


class Call:
    def begun(self) -> None: ...

    async def progress(self, fraction: float, message: str = "") -> None: ...


async def replied(number: int) -> str:
    """The content of a reply that says it is for call `number`, to the worker's first call."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    worker = Worker(1, "acme", ours, lambda number: worker.gone(-9))
    head = {"call": number, "kind": "answer", "status": "OK", "transient": False, "retry_after": None}
    head |= {"traceback": "", "left": "", "memory_bytes": 1}
    with theirs, entered(CONTEXT):
        theirs.sendall(packed(head, b"seen"))
        theirs.shutdown(socket.SHUT_WR)
        try:
            reply = await worker.ask(WorkerCall("look", "m", "f", {}), Call(), 1000)
        finally:
            worker.close()
    return reply.outcome.content


def test_reply_to_another_call_is_refused() -> None:
    async def main() -> None:
        with pytest.raises(ToolError, match="was no answer"):
            await replied(2)

    asyncio.run(main())


def test_reply_to_the_call_is_taken() -> None:
    assert json.dumps(asyncio.run(replied(1))) == '"seen"'
