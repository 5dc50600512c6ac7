"""Worker processes in a simulated world. They obey the interface of real ones, and their keeper that of the real keeper.

What is real is all that decides about them: who gets one, when it is killed, and how long anybody waits for its end.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from itertools import count
from typing import Any

from tests.simulation.scenario import FOR_EVER, Attempt, Attempted
from tests.simulation.upstreams import Answer as Said
from tests.simulation.upstreams import Process, Stage

from deadlinemesh.tool_runner.outcome import Call, ToolError
from deadlinemesh.tool_runner.workers.keeper import Keeper
from deadlinemesh.tool_runner.workers.worker import Worker, WorkerCall, WorkerReply
from deadlinemesh.vocabulary import ToolResult, ToolStatus

__all__ = ["SimulatedKeeper"]

CRASHES = {Attempted.LOSES_ITS_CONNECTION: 1, Attempted.CANCELS_ITSELF: -11}
"""What comes of an attempt is that its process ends, with this code."""


class SimulatedKeeper(Keeper):
    """Starts workers that are no processes."""

    def __init__(self, stage: Stage) -> None:
        self.lost = False
        self._stage = stage
        self._count = count(1)

    def start(self, tenant_id: str) -> Worker:
        return _Worker(next(self._count), tenant_id, self._stage)

    async def aclose(self) -> None:
        """There is nothing to end."""


class _NoSocket:
    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


NO_SOCKET: Any = _NoSocket()


class _Worker(Worker):
    def __init__(self, number: int, tenant_id: str, stage: Stage) -> None:
        super().__init__(number, tenant_id, NO_SOCKET, self._told_to_die)
        self._stage = stage
        self._at_work = ExitStack()
        self._work: int | None = None
        self._clings = 0.0
        stage.processes[number] = Process(number, tenant_id, _now())

    async def ask(self, question: WorkerCall, call: Call, most_bytes: int) -> WorkerReply:
        self.reusable = False
        self.calls += 1
        stage, asked = self._stage, question.arguments["call"]
        if self.calls > 1:
            stage.reached["a worker process is used again"] += 1
        place = stage.place_of(question.tool, asked)
        run, script = stage.call(place)
        number = stage.next_attempt(place)
        attempt = script.attempt(number)
        noted = {"attempt": number, "clings": attempt.clings, "question": asked, "worker": self.number}
        self._work = self._at_work.enter_context(stage.at_work("tool", run, place, question.tool, **noted))
        self._clings = attempt.clings
        call.begun()
        await self._take_time(attempt, call)
        if not self.ended.done():
            if attempt.comes_to in CRASHES:
                stage.faults["a worker process crashes"] += 1
            elif attempt.comes_to is not Attempted.WORKS:
                stage.faults[f"a tool in a worker process {attempt.comes_to}"] += 1
            if attempt.comes_to is Attempted.NEVER:
                await asyncio.wait([self.ended], timeout=FOR_EVER)
            if attempt.comes_to in CRASHES:
                self.gone(CRASHES[attempt.comes_to])
        if self.ended.done():
            raise ToolError("its process is gone before it had answered")
        answer = _answer(attempt, stage.answer(self._work, script))
        stage.note(self._work, retry_after=attempt.retry_after, left=bool(answer.left))
        self._at_work.close()
        self._work, self._clings = None, 0.0
        return answer

    async def _take_time(self, attempt: Attempt, call: Call) -> None:
        parts = attempt.progress + 1
        for part in range(parts):
            await asyncio.wait([self.ended], timeout=attempt.takes / parts)
            if part < attempt.progress and not self.ended.done():
                await call.progress(part / attempt.progress)

    def _told_to_die(self, _: int) -> None:
        if self._stage.processes[self.number].told_at != FOR_EVER:
            return
        self._stage.process(self.number, told_at=_now())
        if self._work is not None:
            self._stage.faults["a worker process is killed at work"] += 1
            self._stage.note(self._work, cut=True)
        if self._clings:
            self._stage.faults["a worker process ignores its kill for a moment"] += 1
        asyncio.get_running_loop().call_later(self._clings, self.gone, -9)

    def gone(self, code: int | None) -> None:
        told_at = self._stage.processes[self.number].told_at
        self._stage.process(self.number, told_at=min(_now(), told_at))
        self._at_work.close()
        super().gone(code)


def _answer(attempt: Attempt, said: Said) -> WorkerReply:
    outcome, traceback, left = ToolResult(ToolStatus.OK, said.done), "", ""
    match attempt.comes_to:
        case Attempted.FAILS:
            outcome = ToolResult(ToolStatus.FAILED, f"{said.mark}is wrong")
        case Attempted.IS_TRANSIENT:
            outcome = ToolResult(ToolStatus.FAILED, f"{said.mark}is busy", True, attempt.retry_after)
        case Attempted.BREAKS:
            outcome, traceback = ToolResult(ToolStatus.FAILED, f"{said.mark}broke"), "a defect of the tool"
        case Attempted.LEAVES_A_TASK:
            left = "a thread"
    return WorkerReply(outcome, traceback, left, 0)


def _now() -> float:
    return asyncio.get_running_loop().time()
