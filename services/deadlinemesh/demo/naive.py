"""An agent platform as it is commonly written. It is naive on purpose, to show the result.

All tenants share one connection pool. Each call has a separate timeout, which begins with the
connection. A run has no deadline. When a user leaves, nothing is cancelled, so work goes on.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx

from deadlinemesh.demo.lanes import Lane
from deadlinemesh.llm_proxy.providers.scripted import ScriptedProvider
from deadlinemesh.policy import Policy
from deadlinemesh.policy.model import ScriptedModel
from deadlinemesh.tool_runner.builtin import calculate
from deadlinemesh.tool_runner.tool import definition_of
from deadlinemesh.vocabulary import Message, Role, TextDelta, ToolCall, ToolSpec, TurnRequest

__all__ = ["NaivePlatform"]

TIMEOUT = 10.0
"""Seconds of each timeout of an HTTP call. The wait for a connection has none."""
MOST_TURNS = 10
"""Turns of the model in one run."""


class NaivePlatform:
    """The platform. It draws the activity of runs into their lanes.

    `elapsed` returns the seconds since the act began.
    """

    def __init__(self, policy: Policy, pool: int, elapsed: Callable[[], float]) -> None:
        model = next(iter(policy.models.values()))
        assert isinstance(model, ScriptedModel)
        self._model = ScriptedProvider(model)
        self._http = policy.tools.http
        self._specs = [ToolSpec(name, tool.description, tool.arguments) for name, tool in self._http.items()]
        arithmetic = definition_of(calculate)
        assert arithmetic is not None
        self._specs.append(ToolSpec("calculate", arithmetic.spec.description, arithmetic.spec.schema))
        limits = httpx.Limits(max_connections=pool)
        self._client = httpx.AsyncClient(timeout=httpx.Timeout(TIMEOUT, pool=None), limits=limits, trust_env=False)
        self._elapsed = elapsed
        self._holding: Counter[str] = Counter()
        self._doing: dict[int, tuple[Lane, Counter[str]]] = {}

    async def aclose(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    async def run(self, lane: Lane, prompt: str) -> str:
        """Run an agent's loop to its answer, however long that takes."""
        doing: Counter[str] = Counter()
        self._doing[id(lane)] = (lane, doing)
        messages = [Message(Role.SYSTEM, "Use the tools, then answer briefly."), Message(Role.USER, prompt)]
        try:
            for _ in range(MOST_TURNS):
                doing["model"] += 1
                self._note()
                text, calls = await self._turn(messages)
                doing["model"] -= 1
                if not calls:
                    return text
                results = await asyncio.gather(*(self._call(lane, doing, call) for call in calls))
                messages.append(Message(Role.ASSISTANT, text, tuple(calls)))
                messages += [Message(Role.TOOL, said, (), call.id) for call, said in zip(calls, results, strict=True)]
            return text
        finally:
            del self._doing[id(lane)]
            lane.leave(self._elapsed() - lane.starts_at)

    async def _turn(self, messages: list[Message]) -> tuple[str, list[ToolCall]]:
        text, calls = "", []
        turn = TurnRequest("demo", tuple(messages), tuple(self._specs), max_output_tokens=1000)
        async for event in self._model.stream(turn):
            if isinstance(event, TextDelta):
                text += event.text
            elif isinstance(event, ToolCall):
                calls.append(event)
        return text, calls

    async def _call(self, lane: Lane, doing: Counter[str], call: ToolCall) -> str:
        arguments = json.loads(call.arguments_json)
        if call.name == "calculate":
            return await calculate(**arguments)
        doing["wait"] += 1
        self._note()
        holds = False

        async def connected(name: str, info: Any) -> None:
            nonlocal holds
            if not holds:  # the first trace event: the pool has assigned a connection
                holds = True
                self._holding[lane.tenant] += 1
                doing.update({"wait": -1, "tool": 1})
                self._note()

        tool = self._http[call.name]
        body = {"json": arguments} if tool.method == "POST" else {}
        url = tool.url.format(**arguments)
        try:
            response = await self._client.request(tool.method, url, extensions={"trace": connected}, **body)
            return response.text
        except httpx.HTTPError as error:
            return f"failed: {type(error).__name__}"
        finally:
            if holds:
                self._holding[lane.tenant] -= 1
            doing["tool" if holds else "wait"] -= 1
            self._note()

    def _note(self) -> None:
        """Update the lanes of all runs.

        The tenant that holds the pool may have changed for every waiter.
        """
        holder = max(self._holding, key=lambda tenant: self._holding[tenant], default="")
        for lane, doing in self._doing.values():
            kind = next((kind for kind in ("tool", "wait", "model") if doing[kind] > 0), "model")
            lane.enter(self._elapsed() - lane.starts_at, kind, holder if kind == "wait" else "")
