"""The agent loop: model turns and tool calls until there is an answer, or no more turns.

The caller sets the deadline by narrowing the context. A loop that is cut leaves a valid history
with all text and results so far. The loop knows no gRPC, and no clock but the context's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from traceback import clear_frames

from deadlinemesh.deadline import Ledger
from deadlinemesh.errors import MeshError
from deadlinemesh.orchestrator.assignment import Assignment
from deadlinemesh.orchestrator.events import RunEvent, Usage
from deadlinemesh.orchestrator.failures import first_cause
from deadlinemesh.orchestrator.ports import ModelPort, ToolPort
from deadlinemesh.orchestrator.shortening import Shortener
from deadlinemesh.orchestrator.tool_calls import ToolCalls
from deadlinemesh.orchestrator.turn import ModelTurns, Turn
from deadlinemesh.orchestrator.upstreams import Upstreams
from deadlinemesh.vocabulary import Message, Phase, ToolCall, ToolResult, ToolSpec

__all__ = ["Agent"]


class Agent:
    """One run of the loop.

    The phases are charged to `ledger`. `emit` is called with each event, `on_limit` with the name
    of each limit that is reached.
    """

    def __init__(
        self,
        assignment: Assignment,
        models: ModelPort,
        tools: ToolPort,
        upstreams: Upstreams,
        ledger: Ledger[Phase],
        emit: Callable[[RunEvent], None],
        on_limit: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.iteration = 0
        self.usage = Usage()
        self._assignment = assignment
        self._ledger = ledger
        self._history = list(assignment.messages)
        self._turn = Turn()
        self._is_last = False
        self._turns = ModelTurns(assignment, models, upstreams, ledger, emit, self.usage)
        shortener = Shortener(models, upstreams, self.usage, assignment.results)
        self._calls = ToolCalls(assignment, tools, upstreams, shortener, ledger, emit, self.usage, on_limit)

    @property
    def history(self) -> tuple[Message, ...]:
        """The conversation so far. Always valid."""
        return (*self._history, *self._turn.messages())

    @property
    def text(self) -> str:
        """The model's text in the current turn."""
        return "".join(self._turn.text)

    @property
    def turn_has_calls(self) -> bool:
        """True if the current turn asks for tools. Its text is no answer then."""
        return bool(self._turn.calls)

    @property
    def finished_calls(self) -> Sequence[tuple[ToolCall, ToolResult]]:
        """The run's calls that have a result, with the result."""
        return self._calls.finished

    @property
    def unfinished_calls(self) -> tuple[ToolCall, ...]:
        """The current turn's calls without a result."""
        return tuple(call for call in self._turn.calls if call.id not in self._turn.results)

    @property
    def cut_short(self) -> bool:
        """True if the last turn was truncated, or was the last one because time was short."""
        return self._turns.truncated or self._is_last

    async def run(self) -> str:
        """Loop until there is an answer, and return it.

        Raises a Stopped error of a model or of the deadline. A tool's failure is not raised: it is
        a result for the model.
        """
        for iteration in range(1, self._assignment.max_iterations + 1):
            self.iteration = iteration
            last = iteration == self._assignment.max_iterations
            await self._take_turn(() if last else self._assignment.tools)
            if not self._turn.calls:
                break
            with self._ledger.phase(Phase.PROCESSING):
                self._history.extend(self._turn.messages())
                self._turn = Turn()
        return self.text

    async def _take_turn(self, offered: Sequence[ToolSpec]) -> None:
        """Run one model turn, which ends with its last tool call.

        Each tool call starts as soon as it is complete. If only one more short turn fits, the model
        is offered no tools and gives the best answer it can.
        """
        self._is_last = bool(offered) and self._turns.leave_no_time_for(offered)
        try:
            with self._ledger.phase(Phase.WRAP_UP) if self._is_last else nullcontext():
                await self._speak(() if self._is_last else offered)
        except BaseExceptionGroup as group:
            if group.split(MeshError)[1] is not None:
                raise  # a defect
            clear_frames(
                group.__traceback__
            )  # the task group's frame refers to the group, and so to all objects of its tasks
            error = first_cause(group)
        else:
            return
        try:
            raise error  # outside the handler, or its context would be the group: a reference cycle
        finally:
            del error

    async def _speak(self, offered: Sequence[ToolSpec]) -> None:
        turn = self._turn
        async with asyncio.TaskGroup() as group:
            await self._turns.speak(
                turn,
                self._history,
                offered,
                lambda call: self._calls.dispatch(call, turn, self.iteration, group),
                last=self._is_last,
            )
