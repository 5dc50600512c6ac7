"""The models and the tools of a simulated world. They play what the scenario says, and write down what they see.

What they write down is the proof: a hop may report whatever it likes, but these know when they were at work, and whose name
and deadline were current there.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from math import inf
from typing import Any
from weakref import WeakKeyDictionary

import httpx
from tests.simulation.scenario import (
    FOR_EVER,
    LOOK_KEPT_FOR,
    Attempt,
    Attempted,
    CallScript,
    RunScript,
    Turn,
    TurnEnd,
)

from deadlinemesh.deadline import current
from deadlinemesh.errors import Shed, UpstreamFailed
from deadlinemesh.tool_runner import Progress, ToolError, tool
from deadlinemesh.vocabulary import (
    FinishReason,
    ModelEvent,
    Role,
    TextDelta,
    ToolCall,
    TurnFinished,
    TurnRequest,
    history_violations,
)

__all__ = ["HttpHost", "Model", "Stage", "Work", "answered", "cling", "mark", "marked", "prompt"]

_PLACE = re.compile(r"r(\d+)t(\d+)s(\d+)")
_MARK = re.compile(r"<r(\d+)")
_ANSWER = re.compile(r"<(\w+)#(\d+)>")
_TO_SHORTEN = re.compile(r'Shorten what the tool (\w+) answered to {"\w+": "(\w+)"}')


@dataclass(frozen=True, slots=True)
class Work:
    """Something that was done for somebody. Instants are the virtual clock's."""

    kind: str
    """A model's `turn`, or its `shortening` of a result; a `tool`, or a `task` that a tool left behind; a `read` or a `write` of
    what is kept."""
    run: int
    """Which of the stage's runs it was done for, by what the request itself says."""
    place: str
    """The turn, and for a tool the call, within that run."""
    name: str
    """Of the model or the tool."""
    attempt: int
    tenant: str
    tier: str
    run_id: str
    deadline: float
    began: float
    clings: float
    """How long the script has it go on after it was told to stop."""
    ended: float = inf
    tokens: int = 0
    """What a model says that it wrote; 0 if it did not come to that."""
    retry_after: float | None = None
    """For how many seconds a tool asks to be left alone; None if it did not come to that."""
    invalid: tuple[str, ...] = ()
    """What is wrong with the history that a model was given."""
    results: tuple[tuple[str, str], ...] = ()
    """The results in that history, each with its call's place."""
    question: str = ""
    """What a tool or the store was asked."""
    owner: str = ""
    """Whose result the store was asked for, or given."""
    content: str | None = None
    """What a read found, a write was given, or a model made of a result that was too long."""
    keep_for: float = 0.0
    """For how many seconds a write was to keep it."""
    cut: bool = False
    """Whether a write, or a worker process, was told to stop."""
    worker: int = 0
    """The process that it was done in; 0 for none of its own."""
    left: bool = False
    """Whether it left something behind in that process."""


@dataclass(frozen=True, slots=True)
class Process:
    """A worker process."""

    number: int
    tenant: str
    born_at: float
    told_at: float = FOR_EVER
    """When it was told to end, or did so by itself."""


def prompt(run: int) -> str:
    """What the client of a run asks: its number tells the model which script to play."""
    return f"run {run}"


def mark(place: str) -> str:
    """Text that tells whose it is."""
    return f"<{place}> "


def marked(text: str) -> set[int]:
    """The runs whose marks are in `text`."""
    return {int(run) for run in _MARK.findall(text)}


def answered(text: str) -> tuple[str, int] | None:
    """Which question a tool's answer answers, and the number of the work that it came from."""
    found = _ANSWER.match(text)
    return None if found is None else (found[1], int(found[2]))


@dataclass(frozen=True, slots=True)
class Answer:
    """What a tool says."""

    mark: str
    """Which it begins with, whatever comes of it."""
    done: str
    """All of it, if it works."""


class Stage:
    """What the upstreams of one world share: the scripts, and the record of what was done."""

    def __init__(self, scripts: tuple[RunScript, ...], longest: float = inf) -> None:
        self.scripts = scripts
        self.longest = longest
        """Characters of a tool's result that a model may be given."""
        self.works: list[Work] = []
        self.faults: Counter[str] = Counter()
        self.reached: Counter[str] = Counter()
        self.unforeseen: list[str] = []
        self.processes: dict[int, Process] = {}
        self._attempts: Counter[str] = Counter()
        self._asked: dict[tuple[str, str, str], str] = {}
        _STAGES[asyncio.get_running_loop()] = self

    def call(self, place: str) -> tuple[int, CallScript]:
        """The run and the script of a tool call."""
        found = _PLACE.fullmatch(place)
        assert found is not None, place
        run, turn, step = map(int, found.groups())
        script = self.scripts[run].turn(turn).steps[step].call
        assert script is not None, place
        return run, script

    def ask(self, place: str, call: CallScript, common: int | None) -> str:
        """What the call asks. Of a common question it is noted who asks it, which the question itself does not tell."""
        if common is None:
            return place
        question = f"q{common}"
        self._asked[current().run_id, call.tool, question] = place
        return question

    def place_of(self, tool: str, question: str) -> str:
        """The place of the call that asks `question` here."""
        if _PLACE.fullmatch(question):
            return question
        whose = current()
        place = self._asked.get((whose.run_id, tool, question))
        if place is None:
            self.unforeseen.append(f"{tool} was asked {question} for {whose.run_id}, which did not ask")
            raise LookupError(question)
        return place

    def next_attempt(self, place: str) -> int:
        """The number of the attempt that begins now, from 1."""
        self._attempts[place] += 1
        return self._attempts[place]

    @contextmanager
    def at_work(
        self,
        kind: str,
        run: int,
        place: str,
        name: str,
        *,
        attempt: int = 1,
        clings: float = 0.0,
        **more: Any,
    ) -> Iterator[int]:
        """Note that there is work for as long as the block lasts. Gives its place in `works`."""
        whose = current()
        identity = whose.tenant_id, whose.tier, whose.run_id, whose.absolute_deadline, _now()
        number = len(self.works)
        self.works.append(Work(kind, run, place, name, attempt, *identity, clings=clings, **more))
        try:
            yield number
        finally:
            self.note(number, ended=_now())

    def note(self, work: int, **what: Any) -> None:
        """Note something more about a work."""
        self.works[work] = replace(self.works[work], **what)

    async def play(
        self, question: str, name: str, progress: Callable[[float], Awaitable[None]] | None = None
    ) -> tuple[Attempt, Answer]:
        """Work as a tool does; the caller sees to what is to come of it."""
        place = self.place_of(name, question)
        run, script = self.call(place)
        number = self.next_attempt(place)
        attempt = script.attempt(number)
        with self.at_work("tool", run, place, name, attempt=number, clings=attempt.clings, question=question) as work:
            try:
                await self._take_time(attempt, progress)
            except BaseException:
                if attempt.clings:
                    self.faults["a tool clings to its work"] += 1
                    await cling(attempt.clings)
                raise
            self.note(work, retry_after=attempt.retry_after)
            if attempt.comes_to is not Attempted.WORKS:
                self.faults[f"a tool {attempt.comes_to}"] += 1
            if attempt.comes_to is Attempted.NEVER:
                await asyncio.sleep(FOR_EVER)
            if attempt.comes_to is Attempted.CANCELS_ITSELF:
                raise asyncio.CancelledError
        return attempt, self.answer(work, script)

    def answer(self, work: int, script: CallScript) -> Answer:
        """What a tool says when that work of it is done."""
        answer = mark(f"{self.works[work].question}#{work}")
        return Answer(answer, f"{answer}done{'.' * script.answers}")

    def process(self, number: int, **what: Any) -> None:
        """Note something more about a worker process."""
        self.processes[number] = replace(self.processes[number], **what)

    async def linger(self, question: str, name: str) -> None:
        """Work on as what a tool has started and forgotten."""
        place = self.place_of(name, question)
        run, _ = self.call(place)
        with self.at_work("task", run, place, name):
            await asyncio.sleep(FOR_EVER)

    async def _take_time(self, attempt: Attempt, progress: Callable[[float], Awaitable[None]] | None) -> None:
        for part in range(attempt.progress if progress else 0):
            await asyncio.sleep(attempt.takes / (attempt.progress + 1))
            assert progress is not None
            await progress(part / attempt.progress)
        await asyncio.sleep(attempt.takes / (attempt.progress + 1 if progress else 1))


# The tool-runner imports tools by name: they find their world by the event loop that it plays on.
_STAGES: WeakKeyDictionary[asyncio.AbstractEventLoop, Stage] = WeakKeyDictionary()


class Model:
    """The `Provider` of one model."""

    def __init__(self, name: str, stage: Stage) -> None:
        self._name = name
        self._stage = stage

    async def stream(self, turn: TurnRequest) -> AsyncGenerator[ModelEvent, None]:
        to_shorten = _TO_SHORTEN.match(turn.messages[0].content)
        async with aclosing(self._shorten(*to_shorten.groups()) if to_shorten else self._speak(turn)) as events:
            async for event in events:
                yield event

    async def _speak(self, turn: TurnRequest) -> AsyncGenerator[ModelEvent, None]:
        asked = next(message.content for message in turn.messages if message.role is Role.USER)
        run = int(asked.removeprefix("run "))
        number = sum(message.role is Role.ASSISTANT for message in turn.messages)
        script = self._stage.scripts[run].turn(number)
        attempt = self._stage.next_attempt(f"r{run}t{number}")
        if attempt > script.ends_so:
            script = replace(script, end=TurnEnd.STOPS)
        invalid = tuple(str(wrong) for wrong in history_violations(turn.messages, "messages"))
        results = tuple((one.tool_call_id, one.content) for one in turn.messages if one.role is Role.TOOL)
        for _, content in results:
            if content.startswith("[shortened"):
                self._stage.reached["a model is given a shortened result"] += 1
            elif "\n[cut" in content:
                self._stage.reached["a model is given a cut result"] += 1
        noted: dict[str, Any] = {"clings": script.clings, "invalid": invalid, "results": results}
        with self._stage.at_work("turn", run, f"t{number}", self._name, attempt=attempt, **noted) as work:
            try:
                async with aclosing(self._events(run, number, script, bool(turn.tools))) as events:
                    async for event in events:
                        if isinstance(event, TurnFinished):
                            self._stage.note(work, tokens=event.output_tokens)
                        yield event
            except (asyncio.CancelledError, GeneratorExit):
                if script.clings:
                    self._stage.faults["a model clings to its work"] += 1
                    await cling(script.clings)
                raise

    async def _shorten(self, tool: str, question: str) -> AsyncGenerator[ModelEvent, None]:
        place = self._stage.place_of(tool, question)
        run, call = self._stage.call(place)
        script = call.shortened
        with self._stage.at_work("shortening", run, place, self._name, clings=script.clings) as work:
            try:
                await asyncio.sleep(script.after)
                said = "x" * script.says
                if script.calls:
                    self._stage.faults["a model that shortens calls a tool"] += 1
                    yield ToolCall("none", tool, "{}")
                if not said or len(said) > self._stage.longest:
                    self._stage.faults[f"a model that shortens says {'too much' if said else 'nothing'}"] += 1
                if said:
                    yield TextDelta(said)
                await self._end(script.end, "a model that shortens")
                if script.end is TurnEnd.SILENTLY:
                    return
                reason = FinishReason.LENGTH if script.end is TurnEnd.AT_ITS_LIMIT else FinishReason.STOP
                tokens = 1 + script.says // 4
                self._stage.note(work, content=said, tokens=tokens)
                yield TurnFinished(reason, 100, tokens)
            except (asyncio.CancelledError, GeneratorExit):
                if script.clings:
                    self._stage.faults["a model that shortens clings to its work"] += 1
                    await cling(script.clings)
                raise

    async def aclose(self) -> None:
        """There is nothing to close."""

    async def _events(self, run: int, number: int, script: Turn, offered: bool) -> AsyncGenerator[ModelEvent, None]:
        called = False
        for index, step in enumerate(script.steps):
            place = f"r{run}t{number}s{index}"
            await asyncio.sleep(step.after)
            if step.call is None or not (offered or not script.obeys):
                yield TextDelta(mark(place))
            else:
                if not offered:
                    self._stage.faults["a model calls tools that it was not offered"] += 1
                called = True
                question = self._stage.ask(place, step.call, script.asks(index))
                arguments = {"call" if step.call.valid else "nonsense": question}
                yield ToolCall(place, step.call.tool, json.dumps(arguments))
        await asyncio.sleep(script.end_after)
        await self._end(script.end)
        if script.end is TurnEnd.SILENTLY:
            return
        reason = FinishReason.TOOL_CALLS if called else FinishReason.STOP
        if script.end is TurnEnd.AT_ITS_LIMIT:
            reason = FinishReason.LENGTH
        yield TurnFinished(reason, 100, 1000 * (run + 1) + number)

    async def _end(self, end: TurnEnd, who: str = "a model") -> None:
        if end is not TurnEnd.STOPS:
            self._stage.faults[f"{who} {end}"] += 1
        match end:
            case TurnEnd.NEVER:
                await asyncio.sleep(FOR_EVER)
            case TurnEnd.FAILS:
                raise UpstreamFailed("the model is broken")
            case TurnEnd.SHEDS:
                raise Shed("the model is busy", retry_after=1.0)
            case TurnEnd.BREAKS:
                raise RuntimeError("a defect of the provider")


class HttpHost(httpx.AsyncBaseTransport):
    """The host of the HTTP tools, behind an HTTP client that has no network."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        name = request.url.path.removeprefix("/")
        question = request.url.params["call"] if request.method == "GET" else json.loads(request.content)["call"]
        attempt, answer = await self._stage.play(question, name)
        match attempt.comes_to:
            case Attempted.FAILS:
                return httpx.Response(400, stream=_body(f"{answer.mark}is wrong"))
            case Attempted.IS_TRANSIENT:
                headers = {} if attempt.retry_after is None else {"Retry-After": f"{attempt.retry_after:.0f}"}
                return httpx.Response(503, headers=headers, stream=_body(f"{answer.mark}is busy"))
            case Attempted.BREAKS:
                raise RuntimeError("a defect of the client")
            case Attempted.LOSES_ITS_CONNECTION:
                raise httpx.ReadError("the connection was reset")
        return httpx.Response(200, stream=_body(answer.done))


def _body(text: str) -> httpx.ByteStream:
    # A response that is made with its content has been read already, and nobody may read it as it comes.
    return httpx.ByteStream(text.encode())


@tool(idempotent=True, cache_for=LOOK_KEPT_FOR)
async def look(call: str, progress: Progress) -> str:
    """Look at something."""
    return await _play_in_python("look", call, progress)


@tool
async def change(call: str, progress: Progress) -> str:
    """Change something."""
    return await _play_in_python("change", call, progress)


@tool(idempotent=True)
def grind(call: str) -> str:
    """Grind something."""
    raise AssertionError(f"{call}: there are no processes in a simulated world")


async def _play_in_python(name: str, question: str, progress: Progress) -> str:
    stage = _STAGES[asyncio.get_running_loop()]
    attempt, answer = await stage.play(question, name, progress)
    match attempt.comes_to:
        case Attempted.FAILS:
            raise ToolError(f"{answer.mark}is wrong")
        case Attempted.IS_TRANSIENT:
            raise ToolError(f"{answer.mark}is busy", transient=True, retry_after=attempt.retry_after)
        case Attempted.BREAKS:
            raise RuntimeError("a defect of the tool")
        case Attempted.LOSES_ITS_CONNECTION:
            raise ConnectionResetError("the connection was reset")
        case Attempted.LEAVES_A_TASK:
            left = asyncio.get_running_loop().create_task(stage.linger(question, name))
            await asyncio.sleep(0)
            assert not left.done()
    return answer.done


async def cling(seconds: float) -> None:
    """Go on for `seconds`, whoever cancels."""
    until = _now() + seconds
    while (left := until - _now()) > 0:
        try:
            await asyncio.sleep(left)
        except asyncio.CancelledError:
            continue


def _now() -> float:
    return asyncio.get_running_loop().time()
