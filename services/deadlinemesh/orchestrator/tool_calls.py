"""Tool calls: from the model's request to a result in the history."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import partial
from itertools import count

from deadlinemesh.deadline import Attempt, Ledger, current, narrowed_after
from deadlinemesh.errors import (
    DeadlineSpent,
    DeadlineSpentUpstream,
    InternalFailure,
    MeshError,
    NotFound,
    UpstreamFailed,
    choices,
    shortened,
    shown,
)
from deadlinemesh.orchestrator.assignment import Assignment
from deadlinemesh.orchestrator.events import (
    RunEvent,
    ToolCallFinished,
    ToolCallProgress,
    ToolCallStarted,
    Usage,
)
from deadlinemesh.orchestrator.failures import EXPIRES_WITH, is_transient
from deadlinemesh.orchestrator.ports import ToolPort
from deadlinemesh.orchestrator.shortening import Shortener
from deadlinemesh.orchestrator.tracking import CallTracker
from deadlinemesh.orchestrator.turn import Turn
from deadlinemesh.orchestrator.upstreams import Upstreams, UpstreamStats
from deadlinemesh.vocabulary import (
    LONGEST_CALL_ID,
    LONGEST_TOOL_NAME,
    Phase,
    ToolCall,
    ToolEvent,
    ToolFinished,
    ToolProgress,
    ToolResult,
    ToolStarted,
    ToolStatus,
)
from deadlinemesh.vocabulary.hops import TOOL_RUNNER

__all__ = ["ENDS_WITHIN", "PROGRESS_EVERY", "ToolCalls"]

PROGRESS_EVERY = 0.05
"""Seconds between two progress events of one call. Each event is kept as long as its run."""

ENDS_WITHIN = 1.0
"""Seconds after its result in which a call must end by itself. After them it is cancelled."""


class ToolCalls:
    """The tool calls of one run."""

    def __init__(
        self,
        assignment: Assignment,
        tools: ToolPort,
        upstreams: Upstreams,
        shortener: Shortener,
        ledger: Ledger[Phase],
        emit: Callable[[RunEvent], None],
        usage: Usage,
        on_limit: Callable[[str], None],
    ) -> None:
        self.finished: list[tuple[ToolCall, ToolResult]] = []
        self._assignment = assignment
        self._tools = tools
        self._specs = {tool.name: tool for tool in assignment.tools}
        self._upstreams = upstreams
        self._shortener = shortener
        self._ledger = ledger
        self._emit = emit
        self._usage = usage
        self._on_limit = on_limit
        self._ids = {"", *(call.id for message in assignment.messages for call in message.tool_calls)}
        self._next_number: dict[str, int] = {}
        self._endings: set[asyncio.Task[None]] = set()

    def dispatch(self, call: ToolCall, turn: Turn, iteration: int, group: asyncio.TaskGroup) -> None:
        """Start `call` of `turn` in `group`.

        A call beyond the limits gets a failed result at once.
        """
        refusal = self._refusal_of(call, turn)
        call = self._fit_for_history(call)
        turn.calls.append(call)
        self._usage.tool_calls += 1
        self._emit(ToolCallStarted(call, iteration, current().remaining))
        if refusal:
            result = turn.results[call.id] = ToolResult(ToolStatus.FAILED, refusal)
            self.finished.append((call, result))
            self._emit(ToolCallFinished(call, result.status, result.content, 0.0, None))
        else:
            group.create_task(self._call(call, turn), name=f"tool {call.name} {call.id}")

    def _refusal_of(self, call: ToolCall, turn: Turn) -> str:
        """The reason for the model why a call is not made; empty for a call that is made."""
        most, longest = self._assignment.most_calls, self._assignment.longest_arguments
        if len(turn.calls) >= most:
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
        """A copy of `call` with a unique id, and with a name and arguments that fit a history."""
        base = call.id[: LONGEST_CALL_ID - 16]
        call_id = call.id if len(call.id) <= LONGEST_CALL_ID else base
        # Some servers restart their count in each turn, or give the same id to all calls.
        if call_id in self._ids:
            first = self._next_number.get(base, 2)
            number = next(n for n in count(first) if f"{base}_{n}" not in self._ids)
            self._next_number[base], call_id = number + 1, f"{base}_{number}"
        self._ids.add(call_id)
        name = shortened(call.name, LONGEST_TOOL_NAME)
        arguments = call.arguments_json if len(call.arguments_json) <= self._assignment.longest_arguments else "{}"
        return replace(call, id=call_id, name=name, arguments_json=arguments)

    async def _call(self, call: ToolCall, turn: Turn) -> None:
        """Run one call to its result.

        A tool's failure is a result. Raises only errors that end the run.
        """
        clock = current().clock
        began_at = clock.monotonic()
        finished = ToolFinished(ToolResult(ToolStatus.CUT, "This call was cut before the tool answered."))
        try:
            finished = await self._finished(call)
        finally:
            result, elapsed = finished.result, clock.monotonic() - began_at
            self._emit(ToolCallFinished(call, result.status, result.content, elapsed, finished.spend))
        turn.results[call.id] = replace(result, content=self._shortener.cut(result.content))
        self.finished.append((call, turn.results[call.id]))
        if self._shortener.too_long(result.content):
            with self._ledger.phase(Phase.PROCESSING):
                shortened_content = await self._shortener.shorten(call, result.content)
            turn.results[call.id] = replace(result, content=shortened_content)

    async def _finished(self, call: ToolCall) -> ToolFinished:
        spec = self._specs.get(call.name)
        if spec is None:  # the tenant may have such a tool, but this run does not
            unknown = f"there is no tool {shown(call.name)}; {choices(sorted(self._specs))}"
            return ToolFinished(ToolResult(ToolStatus.UNKNOWN_TOOL, unknown))
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
            return failed.finished
        except DeadlineSpent as spent:
            if current().remaining <= EXPIRES_WITH:
                raise
            return _failure(call, spent)

    async def _attempt(self, call: ToolCall, upstream: UpstreamStats, attempt: Attempt) -> ToolFinished:
        tracker = CallTracker(self._ledger, upstream, attempt)
        try:
            finished = await self._stream(call, tracker)
        except NotFound as unknown:
            return ToolFinished(ToolResult(ToolStatus.UNKNOWN_TOOL, str(unknown)))
        except DeadlineSpentUpstream as spent:
            if current().remaining <= EXPIRES_WITH:
                raise
            return _failure(call, spent)
        except DeadlineSpent:
            raise
        except MeshError as failed:
            failure = _failure(call, failed, is_transient(failed), getattr(failed, "retry_after", None))
            if not failure.result.transient:
                return failure
            raise _Transient(failure, failed.reason) from failed
        finally:
            tracker.close()
        if finished is None:
            raise InternalFailure(f"the tool-runner ended {call.name} without a result", hop=TOOL_RUNNER)
        if finished.result.transient:
            raise _Transient(finished)
        return finished

    async def _stream(self, call: ToolCall, tracker: CallTracker) -> ToolFinished | None:
        """Make one call to the tool-runner. Returns its result, or None if it ended without one."""
        told_at = -math.inf
        events, has_result = self._tools.call(call), False
        try:
            async for event in events:
                match event:
                    case ToolStarted():
                        tracker.started()
                    case ToolProgress():
                        tracker.progressed()
                        now = current().clock.monotonic()
                        if now - told_at >= PROGRESS_EVERY:
                            told_at = now
                            self._emit(ToolCallProgress(call.id, event.message, event.fraction))
                    case ToolFinished():
                        has_result = True
                        self._let_end(events)
                        if event.result.status is ToolStatus.OK:
                            tracker.succeeded()
                        return event
        finally:
            if not has_result:
                await events.aclose()
        return None

    def _let_end(self, events: AsyncGenerator[ToolEvent, None]) -> None:
        """Let a call with a result end by itself, in the background.

        Closing its stream now would make it count as cancelled.
        """
        ending = asyncio.create_task(_ended(events), name="a tool call's end")
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)


async def _ended(events: AsyncGenerator[ToolEvent, None]) -> None:
    with suppress(MeshError):  # the result is known already
        async with narrowed_after(ENDS_WITHIN, "the end of a call"), aclosing(events):
            async for _ in events:
                pass


class _Transient(Exception):
    """A failure that another attempt may avoid. `finished` is the call's result if none does."""

    def __init__(self, finished: ToolFinished, reason: str = UpstreamFailed.reason) -> None:
        super().__init__(finished.result.content)
        self.finished = finished
        self.reason = reason
        self.retry_after = finished.result.retry_after


def _failure(
    call: ToolCall, error: MeshError, transient: bool = False, retry_after: float | None = None
) -> ToolFinished:
    return ToolFinished(ToolResult(ToolStatus.FAILED, f"{call.name} failed: {error}", transient, retry_after))
