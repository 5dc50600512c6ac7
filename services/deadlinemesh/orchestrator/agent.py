"""The agent loop: model turns and tool calls until there is an answer, or no more turns.

Time is none of its business: its caller narrows the context, and a loop that is cut leaves everything it had in its fields, with a
history that is valid. It knows no gRPC and no clock but the context's.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from traceback import clear_frames

from deadlinemesh.conversation import (
    LONGEST_ARGUMENTS,
    LONGEST_CALL_ID,
    LONGEST_TOOL_NAME,
    Message,
    Role,
    ToolCall,
    ToolSpec,
)
from deadlinemesh.deadline import (
    Allotment,
    Attempt,
    GivenUp,
    Ledger,
    Patience,
    Phase,
    Successive,
    allot,
    current,
    narrowed_after,
)
from deadlinemesh.errors import (
    ClientCancelled,
    DeadlineSpent,
    DeadlineSpentUpstream,
    Doomed,
    Draining,
    InternalFailure,
    MeshError,
    NotFound,
    Shed,
    Stopped,
    UpstreamFailed,
    UpstreamRefused,
    choices,
    shortened,
    shown,
)
from deadlinemesh.orchestrator.events import (
    RunEvent,
    ToolCallFinished,
    ToolCallProgress,
    ToolCallStarted,
    Usage,
)
from deadlinemesh.orchestrator.ports import (
    ModelPort,
    TextDelta,
    ToolEvent,
    ToolPort,
    ToolProgress,
    ToolResult,
    ToolStarted,
    ToolStatus,
    TurnFinished,
    TurnStarted,
    Writing,
)
from deadlinemesh.orchestrator.shortening import Bounds, Shortener
from deadlinemesh.orchestrator.upstreams import FirstTimed, Upstream, Upstreams

__all__ = ["EXPIRES_WITH", "Agent", "Assignment"]

EXPIRES_WITH = 0.05
"""A hop below that reports a spent deadline this close to ours, in seconds, reports ours."""

PROGRESS_EVERY = 0.05
"""Seconds between two of a tool's messages on its progress that are passed on: each is kept for as long as its run."""

TOO_MANY_CALLS = 2
"""So many times the calls that a turn may make end it: each beyond those has a failed result in the history."""

ENDS_WITHIN = 1.0
"""Seconds after its result in which a tool's call ends by itself, or is cancelled."""

_TRANSIENT = (UpstreamFailed, Shed, Draining)
"""What another attempt may mend: it may meet a better instance, or a better moment."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """What an agent is to do, and within which limits."""

    model: str
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    max_iterations: int
    max_output_tokens: int
    tool_retries: int
    """Attempts after the first; a model turn that has said nothing may have as many."""
    results: Bounds
    """What the model is given of a tool's result."""
    most_calls: int = 64
    """Calls that a model may make in one turn."""
    longest_arguments: int = LONGEST_ARGUMENTS
    """Characters of a call's arguments."""
    fallbacks: tuple[str, ...] = ()
    """Models that take the place of `model`, one after the other, in the rest of a run in which it fails."""


@dataclass(slots=True)
class _Turn:
    """One model turn as far as it has come."""

    text: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    results: dict[str, ToolResult] = field(default_factory=dict)

    @property
    def has_begun(self) -> bool:
        """Whether there is anything that must not come twice."""
        return bool(self.text or self.calls)

    def messages(self) -> list[Message]:
        """The turn as history; a call without a result gets a synthetic one, so that the history is valid."""
        if not self.text and not self.calls:
            return []
        assistant = Message(Role.ASSISTANT, "".join(self.text), tuple(self.calls))
        cut = ToolResult(ToolStatus.CUT, "This call was cut: the run's time was spent before the tool answered.")
        return [
            assistant,
            *(Message(Role.TOOL, self.results.get(call.id, cut).content, (), call.id) for call in self.calls),
        ]


class Agent:
    """One run of the loop. `emit` takes what happens, `on_limit` the names of limits that it comes to; `ledger` is charged with the
    phases.
    """

    def __init__(
        self,
        assignment: Assignment,
        models: ModelPort,
        tools: ToolPort,
        upstreams: Upstreams,
        ledger: Ledger,
        emit: Callable[[RunEvent], None],
        on_limit: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.iteration = 0
        self.usage = Usage()
        self.finished_calls: list[tuple[ToolCall, ToolResult]] = []
        self._assignment = assignment
        self._choice = [assignment.model, *assignment.fallbacks]
        self._models = models
        self._tools = tools
        self._upstreams = upstreams
        self._ledger = ledger
        self._emit = emit
        self._on_limit = on_limit
        self._history = list(assignment.messages)
        self._turn = _Turn()
        self._call_ids = {"", *(call.id for message in assignment.messages for call in message.tool_calls)}
        self._next_number: dict[str, int] = {}
        self._specs = {tool.name: tool for tool in assignment.tools}
        self._endings: set[asyncio.Task[None]] = set()
        self._truncated = False
        self._wrapped_up = False
        self._shortener = Shortener(models, upstreams, self.usage, assignment.results)

    @property
    def history(self) -> tuple[Message, ...]:
        """The conversation as far as it has come; always valid."""
        return (*self._history, *self._turn.messages())

    @property
    def text(self) -> str:
        """What the model has said in the present turn."""
        return "".join(self._turn.text)

    @property
    def turn_has_calls(self) -> bool:
        """Whether the present turn asks for tools: then its text is not an answer."""
        return bool(self._turn.calls)

    @property
    def unfinished_calls(self) -> tuple[ToolCall, ...]:
        """The present turn's calls that have no result."""
        return tuple(call for call in self._turn.calls if call.id not in self._turn.results)

    @property
    def cut_short(self) -> bool:
        """Whether there would have been more to say or to do: a token limit ended the last turn, or time was short."""
        return self._truncated or self._wrapped_up

    async def run(self) -> str:
        """Loop to the answer. Raises a Stopped error of the models or of the deadline; tool failures are the model's affair."""
        for iteration in range(1, self._assignment.max_iterations + 1):
            self.iteration = iteration
            last = self.iteration == self._assignment.max_iterations
            await self._take_turn(() if last else self._assignment.tools)
            if not self._turn.calls:
                break
            with self._ledger.phase(Phase.PROCESSING):
                self._history.extend(self._turn.messages())
                self._turn = _Turn()
        return self.text

    async def _take_turn(self, offered: Sequence[ToolSpec]) -> None:
        """One model turn. Each tool call starts as soon as it is complete; the turn ends when all have ended.

        Where only one more short turn fits, no tool is offered: it is the last, and gives the answer that there is.
        """
        self._wrapped_up = bool(offered) and self._wraps_up(offered)
        try:
            with self._ledger.phase(Phase.WRAP_UP) if self._wrapped_up else nullcontext():
                async with asyncio.TaskGroup() as group:
                    await self._speak(() if self._wrapped_up else offered, group)
        except BaseExceptionGroup as group:
            if group.split(MeshError)[1] is not None:
                raise  # a defect
            clear_frames(group.__traceback__)  # the task group's own holds the group, and so all that was at work
            error = _telling(group)
        else:
            return
        try:
            raise error  # out here, as one that is raised while its group is handled holds the group, which holds it
        finally:
            del error

    async def _speak(self, offered: Sequence[ToolSpec], group: asyncio.TaskGroup) -> None:
        """Have the turn's model speak; where it fails before it has said anything, the next one, for the rest of the run.

        A fallback is no retry: the load is another upstream's, and has its own limits there.
        """
        while True:
            model, *others = self._choice
            upstream = self._upstreams.of(f"model {model}")
            fallback = self._upstreams.of(f"model {others[0]}") if others else None
            try:
                return await upstream.retried(
                    partial(self._stream, model, offered, group, upstream),
                    self._assignment.tool_retries,
                    # A proxy that drains is another one's to replace, not another model's.
                    is_transient=partial(self._may_speak_again, (Draining,) if others else _TRANSIENT),
                    waiting=partial(self._ledger.phase, Phase.RETRY_BACKOFF),
                    relief=None if fallback is None else fallback.may_relieve,
                )
            except (*_TRANSIENT, Doomed, GivenUp) as failed:
                here, gave_up = current(), isinstance(failed, GivenUp)  # then the fallback has been asked
                if fallback is None or self._turn.has_begun or not (gave_up or fallback.may_relieve(here.remaining)):
                    raise
                upstream.fell_back(here, others[0], "HUNG" if gave_up else failed.reason)
                self._choice = others

    def _allotment(self, model: str, offered: Sequence[ToolSpec]) -> Allotment:
        quickest = self._quickest(offered).usually if offered else None
        return self._allotted(model, quickest)

    def _allotted(self, model: str, quickest_tool: float | None) -> Allotment:
        pace, most = self._upstreams.of(f"model {model}").pace, self._assignment.max_output_tokens
        return allot(current().remaining, pace, quickest_tool=quickest_tool, most_tokens=most)

    def _quickest(self, offered: Sequence[ToolSpec]) -> Upstream:
        return min((self._upstreams.of(f"tool {tool.name}") for tool in offered), key=lambda upstream: upstream.usually)

    def _wraps_up(self, offered: Sequence[ToolSpec]) -> bool:
        """Whether there is no time for tools. Those that were slow are offered now and then: else they would be so for ever."""
        model, quickest = self._choice[0], self._quickest(offered)
        if not self._allotted(model, quickest.usually).wraps_up:
            return False
        return self._allotted(model, 0.0).wraps_up or not quickest.worth_a_try()

    def _may_speak_again(self, kinds: tuple[type[Exception], ...], error: Exception) -> bool:
        return isinstance(error, kinds) and not isinstance(error, UpstreamRefused) and not self._turn.has_begun

    async def _stream(
        self,
        model: str,
        offered: Sequence[ToolSpec],
        group: asyncio.TaskGroup,
        upstream: Upstream,
        attempt: Attempt,
    ) -> None:
        phases = Successive(self._ledger, Phase.LLM_QUEUE)
        timed = FirstTimed(upstream)
        allotment = self._allotment(model, offered)
        messages = [*self._history, _time_left(current().remaining, self._wrapped_up)]
        self.usage.model_calls += 1
        # Behind the window is the time of the tools. A turn that has not asked for any by then needs none, and may go on.
        window = Patience(lambda: bool(self._turn.calls))
        try:
            async with (
                window,
                aclosing(self._models.generate(model, messages, offered, allotment.max_tokens)) as events,
            ):
                window.lasts(allotment.window)
                async for event in events:
                    match event:
                        case TurnStarted():
                            phases.enter(Phase.LLM_FIRST_TOKEN)
                            timed.begin()
                            attempt.alive()
                        case Writing():
                            attempt.alive()
                            timed.end()
                            phases.enter(Phase.LLM_STREAM)
                        case TextDelta():
                            attempt.settled()
                            timed.end()
                            if not self._turn.calls:  # they were written before they came
                                timed.speaks()
                            phases.enter(Phase.LLM_STREAM)
                            self._turn.text.append(event.text)
                            self._emit(event)
                        case ToolCall():
                            attempt.settled()
                            timed.end()
                            phases.enter(Phase.LLM_STREAM)
                            if len(self._turn.calls) >= TOO_MANY_CALLS * self._assignment.most_calls:
                                break  # it does not stop by itself
                            self._dispatch(event, group)
                        case TurnFinished():
                            self.usage.input_tokens += event.input_tokens
                            self.usage.output_tokens += event.output_tokens
                            self._truncated = event.truncated
                            timed.finish(event.output_tokens)
        except GivenUp:
            if not window.gave_up:
                raise
        finally:
            phases.leave()

    def _dispatch(self, call: ToolCall, group: asyncio.TaskGroup) -> None:
        refusal = self._refusal_of(call)
        call = self._fit_for_history(call)
        self._call_ids.add(call.id)
        self._turn.calls.append(call)
        self.usage.tool_calls += 1
        self._emit(ToolCallStarted(call, self.iteration, current().remaining))
        if refusal:
            result = self._turn.results[call.id] = ToolResult(ToolStatus.FAILED, refusal)
            self.finished_calls.append((call, result))
            self._emit(ToolCallFinished(call, result.status, result.content, 0.0, None))
        else:
            group.create_task(self._call(call, self._turn), name=f"tool {call.name} {call.id}")

    def _refusal_of(self, call: ToolCall) -> str:
        """Why a call is not made, as the model will read it; empty for one that is."""
        most, longest = self._assignment.most_calls, self._assignment.longest_arguments
        if len(self._turn.calls) >= most:
            self._on_limit("tool_calls_per_turn")
            return f"This call was not made: a turn may make {most} calls. Use what the others have found."
        if len(call.arguments_json) > longest:
            self._on_limit("longest_arguments")
            return (
                f"This call was not made: its arguments have {len(call.arguments_json)} characters; at most {longest} "
                "are taken."
            )
        return ""

    def _fit_for_history(self, call: ToolCall) -> ToolCall:
        """`call` with an id of its own, and with parts that are taken in a history."""
        base = call.id[: LONGEST_CALL_ID - 16]
        call_id = call.id if len(call.id) <= LONGEST_CALL_ID else base
        if call_id in self._call_ids:  # some servers begin anew in each turn, or name all alike
            first = self._next_number.get(base, 2)
            number = next(n for n in count(first) if f"{base}_{n}" not in self._call_ids)
            self._next_number[base], call_id = number + 1, f"{base}_{number}"
        name = shortened(call.name, LONGEST_TOOL_NAME)
        arguments = call.arguments_json if len(call.arguments_json) <= self._assignment.longest_arguments else "{}"
        return ToolCall(call_id, name, arguments)

    async def _call(self, call: ToolCall, turn: _Turn) -> None:
        """Run one tool to a result; what goes wrong with the tool is a result, what ends the run is raised."""
        clock = current().clock
        began_at = clock.monotonic()
        result = ToolResult(ToolStatus.CUT, "This call was cut before the tool answered.")
        try:
            result = await self._result_of(call)
        finally:
            elapsed = clock.monotonic() - began_at
            self._emit(ToolCallFinished(call, result.status, result.content, elapsed, result.spend))
        turn.results[call.id] = replace(result, content=self._shortener.cut(result.content))
        self.finished_calls.append((call, turn.results[call.id]))
        if self._shortener.too_long(result.content):
            with self._ledger.phase(Phase.PROCESSING):
                shortened = await self._shortener.shorten(call, result.content)
            turn.results[call.id] = replace(result, content=shortened)

    async def _result_of(self, call: ToolCall) -> ToolResult:
        spec = self._specs.get(call.name)
        if spec is None:  # the tenant's it may be, but not this run's
            unknown = f"there is no tool {shown(call.name)}; {choices(sorted(self._specs))}"
            return ToolResult(ToolStatus.UNKNOWN_TOOL, unknown)
        upstream = self._upstreams.of(f"tool {call.name}")
        try:
            return await upstream.retried(
                partial(self._attempt, call, upstream),
                self._assignment.tool_retries,
                is_transient=lambda error: isinstance(error, _Transient),
                waiting=partial(self._ledger.phase, Phase.RETRY_BACKOFF),
                idempotent=spec.idempotent,
            )
        except _Transient as failed:
            return failed.result
        except DeadlineSpent as spent:
            if current().remaining <= EXPIRES_WITH:
                raise
            return ToolResult(ToolStatus.FAILED, f"{call.name} failed: {spent}")

    async def _attempt(self, call: ToolCall, upstream: Upstream, attempt: Attempt) -> ToolResult:
        phases = Successive(self._ledger, Phase.TOOL_QUEUE)
        timed = FirstTimed(upstream)
        told_at = -math.inf
        events, has_result = self._tools.call(call), False
        try:
            try:
                async for event in events:
                    match event:
                        case ToolStarted():
                            phases.enter(Phase.TOOL_CALL)
                            timed.begin()
                            attempt.alive()
                        case ToolProgress():
                            attempt.alive()
                            now = current().clock.monotonic()
                            if now - told_at >= PROGRESS_EVERY:
                                told_at = now
                                self._emit(ToolCallProgress(call.id, event.message, event.fraction))
                        case ToolResult():
                            has_result = True
                            self._let_end(events)
                            if event.transient:
                                raise _Transient(event)
                            if event.status is ToolStatus.OK:
                                timed.end()
                            return event
            finally:
                if not has_result:
                    await events.aclose()
        except NotFound as unknown:
            return ToolResult(ToolStatus.UNKNOWN_TOOL, str(unknown))
        except DeadlineSpentUpstream as spent:
            if current().remaining <= EXPIRES_WITH:
                raise
            return ToolResult(ToolStatus.FAILED, f"{call.name} failed: {spent}")
        except DeadlineSpent:
            raise
        except MeshError as failed:
            retry_after: float | None = getattr(failed, "retry_after", None)
            transient = isinstance(failed, _TRANSIENT) and not isinstance(failed, UpstreamRefused)
            result = ToolResult(ToolStatus.FAILED, f"{call.name} failed: {failed}", transient, retry_after)
            if not transient:
                return result
            raise _Transient(result, failed.reason) from failed
        finally:
            phases.leave()
        raise InternalFailure(f"the tool-runner ended {call.name} without a result", hop="tool-runner")

    def _let_end(self, events: AsyncGenerator[ToolEvent, None]) -> None:
        """Have a call that has its result end by itself, as one that is left is a cancelled one. Nobody waits for it."""
        ending = asyncio.create_task(_ended(events), name="a tool call's end")
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)


async def _ended(events: AsyncGenerator[ToolEvent, None]) -> None:
    with suppress(MeshError):  # the result is there
        async with narrowed_after(ENDS_WITHIN, "the end of a call"), aclosing(events):
            async for _ in events:
                pass


class _Transient(Exception):
    """A failure that another attempt may mend; carries the result to give if none does."""

    def __init__(self, result: ToolResult, reason: str = UpstreamFailed.reason) -> None:
        super().__init__(result.content)
        self.result = result
        self.reason = reason
        self.retry_after = result.retry_after


def _time_left(seconds: float, wraps_up: bool) -> Message:
    """What the model is told of the time. In round numbers, so that it need not be told anew all the time."""
    if wraps_up:
        return Message(Role.SYSTEM, "Time is nearly up. Give the best answer you can now, in two sentences at most.")
    round_seconds = next((step for step in _ROUND_SECONDS if seconds >= step), 0)
    left = f"About {round_seconds} seconds are left" if round_seconds else "Less than a second is left"
    return Message(Role.SYSTEM, f"{left} for everything, tools included.")


_ROUND_SECONDS = (300, 240, 180, 120, 90, 60, 45, 30, 20, 15, 10, 7, 5, 3, 2, 1)


def _telling(group: BaseExceptionGroup) -> MeshError:
    """The error that stands for a group of them: one that tells of time or of the client before any other."""
    errors: list[MeshError] = []
    pending: list[BaseException] = [group]
    while pending:
        error = pending.pop()
        if isinstance(error, BaseExceptionGroup):
            pending.extend(error.exceptions)
        elif isinstance(error, MeshError):
            errors.append(error)
    telling = (ClientCancelled, DeadlineSpent, DeadlineSpentUpstream, Stopped, MeshError)
    first = next(error for kind in telling for error in errors if isinstance(error, kind))
    if isinstance(first, DeadlineSpentUpstream) and current().remaining <= EXPIRES_WITH:
        return DeadlineSpent(str(first), hop=first.hop)
    return first
