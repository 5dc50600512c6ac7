"""An orchestrator's agent loop on virtual time, with models and tools that do as they are told. No gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from tests.support.virtual import now, with_seconds

from deadlinemesh.deadline import entered, narrowed_after
from deadlinemesh.errors import MeshError
from deadlinemesh.orchestrator.agent import Agent
from deadlinemesh.orchestrator.assignment import Assignment
from deadlinemesh.orchestrator.events import RunEvent
from deadlinemesh.orchestrator.shortening import Bounds
from deadlinemesh.orchestrator.upstreams import Upstreams
from deadlinemesh.telemetry import CountingSink, Retried, RetryRefused, Telemetry
from deadlinemesh.testing import virtual_time
from deadlinemesh.vocabulary import (
    FinishReason,
    Message,
    Role,
    TextDelta,
    ToolCall,
    ToolEvent,
    ToolFinished,
    ToolResult,
    ToolSpec,
    ToolStarted,
    ToolStatus,
    TurnEvent,
    TurnFinished,
    TurnRequest,
    TurnStarted,
    history_violations,
    phase_ledger,
)

SECONDS = 10.0
HANGS = 3600.0


Script = Sequence[float | MeshError | TurnEvent]
ToolScript = Sequence[float | MeshError | ToolEvent | ToolResult]


class Models:
    """A script for each turn: what it does, in order. A number is a wait, an error is raised, the rest is yielded."""

    def __init__(self, **turns: Sequence[Script]) -> None:
        self.turns = {model: list(scripts) for model, scripts in turns.items()}
        self.asked: list[tuple[str, float]] = []
        self.told: list[str] = []
        """What the system said last, in each turn."""
        self.offered: list[int] = []
        """How many tools, in each turn."""
        self.most_tokens: list[int] = []

    async def generate(self, turn: TurnRequest) -> AsyncGenerator[TurnEvent, None]:
        assert history_violations(turn.messages, "messages") == []
        self.asked.append((turn.model, now()))
        self.told.append(turn.messages[-1].content)
        self.offered.append(len(turn.tools))
        self.most_tokens.append(turn.max_output_tokens)
        scripts = self.turns[turn.model]
        script = scripts.pop(0) if len(scripts) > 1 else scripts[0]
        for step in script:
            if isinstance(step, float):
                await asyncio.sleep(step)
            elif isinstance(step, MeshError):
                raise step
            else:
                yield step


class Tools:
    """The same for the attempts at a tool."""

    def __init__(self, *attempts: ToolScript) -> None:
        self.attempts = list(attempts)
        self.began: list[float] = []

    async def specs(self) -> tuple[ToolSpec, ...]:
        return (ToolSpec("look", "Look.", {}, True), ToolSpec("pay", "Pay.", {}, False))

    async def call(self, call: ToolCall) -> AsyncGenerator[ToolEvent, None]:
        self.began.append(now())
        for step in self.attempts.pop(0) if len(self.attempts) > 1 else self.attempts[0]:
            if isinstance(step, float):
                await asyncio.sleep(step)
            elif isinstance(step, MeshError):
                raise step
            else:
                yield ToolFinished(step) if isinstance(step, ToolResult) else step


ENDED = TurnFinished(FinishReason.STOP, 1, 1)
ANSWER: list[float | MeshError | TurnEvent] = [TurnStarted(), 0.2, TextDelta("forty-"), TextDelta("two"), ENDED]
SILENT: list[float | MeshError | TurnEvent] = [TurnStarted(), HANGS]
RESULT = ToolResult(ToolStatus.OK, "seen")
QUICK: list[float | MeshError | ToolEvent | ToolResult] = [ToolStarted(), 0.1, RESULT]


def asks_for(tool: str) -> list[float | MeshError | TurnEvent]:
    return [TurnStarted(), ToolCall(f"call-{tool}", tool, "{}"), ENDED]


class World:
    """An orchestrator's memory and what it told, across runs."""

    def __init__(self) -> None:
        self.sink = CountingSink()
        self.upstreams = Upstreams(Telemetry([self.sink]), "orchestrator")
        self.events: list[RunEvent] = []

    async def run(
        self,
        models: Models,
        tools: Tools | None = None,
        *,
        retries: int = 1,
        fallbacks: tuple[str, ...] = (),
        tenant_id: str = "acme",
        seconds: float = SECONDS,
        results: Bounds = Bounds(24_000),  # noqa: B008  # frozen
    ) -> Agent:
        tools = tools or Tools(QUICK)
        assignment = Assignment(
            model="main",
            messages=(Message(Role.USER, "go"),),
            tools=await tools.specs(),
            max_iterations=5,
            max_output_tokens=0,
            tool_retries=retries,
            results=results,
            fallbacks=fallbacks,
        )
        self.events.clear()
        ledger = phase_ledger(virtual_time.clock(), now())
        agent = self.agent = Agent(assignment, models, tools, self.upstreams, ledger, self.events.append)
        self.ledger = ledger
        with entered(with_seconds(seconds, tenant_id=tenant_id)):
            async with narrowed_after(seconds, "run"):
                await agent.run()
        assert history_violations(agent.history, "history") == []
        return agent

    @property
    def said(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, TextDelta))

    def told(self) -> list[tuple[str, str, str]]:
        """Of each retry: the upstream, why, and what refused it."""
        return [
            (event.upstream, event.why, event.refused if isinstance(event, RetryRefused) else "")
            for event in self.sink.events
            if isinstance(event, (Retried, RetryRefused))
        ]
