"""What a worker's process says while it has a call: a line of JSON for each frame's head, with its body as `body`.

A tool runs in the same process and may write there what it likes.
"""

from __future__ import annotations

import socket
from typing import Any

from tests.fuzz.reading import json_lines, run

from deadlinemesh.deadline import DeadlineContext, entered
from deadlinemesh.deadline.clock import SYSTEM_CLOCK
from deadlinemesh.tool_runner.outcome import ToolError, failure
from deadlinemesh.tool_runner.service import _fitting, _Running
from deadlinemesh.tool_runner.workers.frames import packed
from deadlinemesh.tool_runner.workers.worker import Worker, WorkerCall
from deadlinemesh.transport.codec import tool_event_to_wire
from deadlinemesh.vocabulary import ToolFinished, ToolStatus, phase_ledger

JSON_LINES = True
MOST_BYTES = 500
CONTEXT = DeadlineContext("acme", 1e12, "free", "1" * 32, "run_1", 0.0)


def target(data: bytes) -> None:
    run(_ask([line for line in json_lines(data) if isinstance(line, dict)][:16]))


async def _ask(heads: list[dict[str, Any]]) -> None:
    ours, theirs = socket.socketpair()
    worker = Worker(1, "acme", ours, lambda number: worker.gone(-9))
    call = _Running(phase_ledger(SYSTEM_CLOCK, 0.0))
    for head in heads:
        body = head.pop("body", "")
        theirs.sendall(packed(head, str(body).encode(errors="replace")))
    theirs.shutdown(socket.SHUT_WR)
    with theirs, entered(CONTEXT):
        try:
            answer = await worker.ask(WorkerCall("look", "m", "f", {}), call, MOST_BYTES)
        except ToolError as failed:
            outcome = failure("look", failed)
        else:
            outcome = answer.outcome
            assert len(answer.outcome.content.encode()) <= 3 * MOST_BYTES
        finally:
            worker.close()
    assert outcome.status in ToolStatus
    while not call._events.empty():
        event = call._events.get_nowait()
        assert event is not None
        tool_event_to_wire(event).SerializeToString()
    tool_event_to_wire(ToolFinished(_fitting(outcome, 10_000))).SerializeToString()
