"""One tool call, from its queue to its result, without a word of gRPC."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, aclosing
from dataclasses import replace
from itertools import chain
from typing import Any

from deadlinemesh.deadline import SYSTEM_CLOCK, Clock, DeadlineContext, Ledger, current
from deadlinemesh.deadline.lowlevel import REPORT_ORPHAN_AFTER
from deadlinemesh.errors import Doomed, NotFound, Shed, Violation, choices, shortened, shown
from deadlinemesh.policy import Past, Rest
from deadlinemesh.tool_runner.arguments import ArgumentsReader
from deadlinemesh.tool_runner.cache import KeptResults
from deadlinemesh.tool_runner.outcome import Tool, ToolError, failure, invalid_arguments, sound
from deadlinemesh.tool_runner.registry import Registry
from deadlinemesh.vocabulary import (
    LONGEST_ARGUMENTS,
    LONGEST_CALL_ID,
    HopSpend,
    Phase,
    ToolEvent,
    ToolFinished,
    ToolProgress,
    ToolResult,
    ToolSpec,
    ToolStarted,
    phase_ledger,
)
from deadlinemesh.vocabulary.hops import TOOL_RUNNER

__all__ = ["ToolService"]

_LOG = logging.getLogger("deadlinemesh.tool_runner")

UNREAD_PROGRESS = 16
"""Progress events that may wait for a slow reader before the tool has to."""

PROGRESS_CHARACTERS = 1000
"""Of a progress message; it is for people."""

MOST_PROGRESS_EVENTS = 10_000
"""Of one call, and so many bytes; what a tool tells beyond them is dropped. A call of 300 s may tell 33 a second."""

MOST_PROGRESS_BYTES = 1_000_000

LONG_ARGUMENTS = 8192
"""Characters of arguments whose check would hold up the event loop: 16 ms for so many, where they are whole numbers."""

MESSAGE_OVERHEAD = 512
"""Bytes of a result message that are not its content, with room to spare."""


class ToolService:
    """Runs the tools of a registry. `clock` must be that of the contexts it is called in.

    A result that would not fit into a message of `message_bytes` is cut, with a mark. A call with more than `longest_arguments`
    characters of arguments is not made. Without `kept`, none is kept.
    """

    def __init__(
        self,
        registry: Registry,
        message_bytes: int,
        clock: Clock = SYSTEM_CLOCK,
        kept: KeptResults | None = None,
        longest_arguments: int = LONGEST_ARGUMENTS,
    ) -> None:
        self.registry = registry
        """The tools of calls to come."""
        self._most_bytes = message_bytes - MESSAGE_OVERHEAD
        self._longest_arguments = longest_arguments
        self._clock = clock
        self._kept = kept
        self._past: Past[Registry] = Past(clock)

    def specs(self) -> tuple[ToolSpec, ...]:
        """The current tenant's tools, in alphabetical order."""
        tenant_id = current().tenant_id
        known = (one for one in chain((self.registry,), self._past) if one.knows(tenant_id))
        return next(known, self.registry).specs(tenant_id)

    def _find(self, name: str) -> tuple[Registry, Tool, ArgumentsReader]:
        """The current tenant's tool, its arguments' check, and the registry that holds it. Raises NotFound."""
        tenant_id = current().tenant_id
        for registry in chain((self.registry,), self._past):
            if registry.allows(tenant_id, name):  # if it was in the past, the tool may be only the tenant's no more
                holder = self.registry if self.registry.has(name) else registry
                return holder, *holder.tool(name)
        known = choices(one.name for one in self.specs())
        raise NotFound([Violation("name", f"there is no tool {shown(name)}; {known}")])

    async def call(self, name: str, arguments_json: str, call_id: str = "") -> AsyncGenerator[ToolEvent, None]:
        """Run a tool: `ToolStarted`, any number of `ToolProgress`, then `ToolFinished`. A call with
        wrong arguments, or with a kept result, yields only `ToolFinished`.

        A tool's failure is a result. Raises NotFound for an unknown tool, and Shed or Doomed where no slot
        comes free in time. A spent deadline and a cancellation pass through. Close the generator, with
        `contextlib.aclosing`, to end the tool.
        """
        context, call_id = current(), shortened(call_id, LONGEST_CALL_ID)
        most_bytes, kept, longest = self._most_bytes, self._kept, self._longest_arguments
        registry, tool, arguments = self._find(name)
        with registry.in_use:
            running = _Running(phase_ledger(self._clock, context.started_at))
            given, violations = await _read(arguments, arguments_json, longest, running)
            found = None
            if kept is not None and not violations:
                with running.waiting():
                    found = await kept.find(tool, given)
            if violations:
                result = _fitting(invalid_arguments(name, violations), most_bytes)
            elif found is not None:
                result = found
            else:
                task = asyncio.get_running_loop().create_task(tool.run(given, running), name=f"tool {name} {call_id}")
                try:
                    async with aclosing(running.events_until(task)) as events:
                        async for event in events:
                            yield event
                    result = _fitting(_result_of(task, tool, context, call_id), most_bytes)
                finally:
                    await _ended(task)
                if kept is not None:
                    kept.keep(tool, given, result)
            yield running.finished(result)

    def replace(
        self,
        registry: Registry,
        message_bytes: int,
        kept: KeptResults | None = None,
        longest_arguments: int = LONGEST_ARGUMENTS,
    ) -> Rest:
        """Use `registry` and `kept` for calls to come, but for those of runs that began with what it takes away. The rest closes
        the old registry.
        """
        old, self.registry = self.registry, registry
        self._kept = kept  # another registry's tool of the same name need not be the same tool
        self._most_bytes = message_bytes - MESSAGE_OVERHEAD
        self._longest_arguments = longest_arguments
        needed_for = 0.0
        if registry.policy is not None and old.policy is not None:
            needed_for = self._past.keep(old, old.policy, registry.policy)
            registry.take_place_of(old, self._past.shares(registry.policy))
        return Rest(old.aclose, needed_for)

    def warm(self) -> None:
        """Start what the first call would have to wait for. Raises OSError where that is not possible."""
        self.registry.warm()

    async def aclose(self) -> None:
        """End all processes and close all connections, once no call is running but orphans."""
        await self.registry.aclose(REPORT_ORPHAN_AFTER)


async def _read(
    arguments: ArgumentsReader, text: str, longest: int, running: _Running
) -> tuple[dict[str, Any], list[str]]:
    """Like `ArgumentsReader.read`; long arguments are read in a thread, which shares the interpreter with the event loop."""
    if len(text) > longest:
        return {}, [f"arguments: they have {len(text)} characters; give at most {longest}"]
    if len(text) <= LONG_ARGUMENTS:
        return arguments.read(text)
    with running.waiting():
        return await asyncio.to_thread(arguments.read, text)


class _Running:
    """The `Call` that a tool sees: what it says of itself becomes events."""

    def __init__(self, ledger: Ledger[Phase]) -> None:
        self._ledger = ledger
        self._begun = False
        self._told = 0
        self._told_bytes = 0
        # Room for one more than progress may fill, so that neither `begun` nor the end ever has to wait.
        self._events: asyncio.Queue[ToolEvent | None] = asyncio.Queue(UNREAD_PROGRESS + 1)

    def begun(self) -> None:
        if not self._begun:
            self._begun = True
            self._ledger.enter(Phase.TOOL_CALL)  # takes precedence over the queue
            self._events.put_nowait(ToolStarted(self._ledger.spent().get(Phase.TOOL_QUEUE, 0.0)))

    async def progress(self, fraction: float, message: str = "") -> None:
        self.begun()
        text = sound(message[:PROGRESS_CHARACTERS])
        self._told += 1
        self._told_bytes += len(text.encode())
        if self._told > MOST_PROGRESS_EVENTS or self._told_bytes > MOST_PROGRESS_BYTES:
            await asyncio.sleep(0)  # no tool waits any longer for it than for what is told
            return
        within = 0.0 if math.isnan(fraction) else min(1.0, max(0.0, fraction))
        await self._events.put(ToolProgress(within, text))

    def waiting(self) -> AbstractContextManager[None]:
        """The block is part of the wait for the tool to begin."""
        return self._ledger.phase(Phase.TOOL_QUEUE)

    async def events_until(self, task: asyncio.Task[ToolResult]) -> AsyncGenerator[ToolEvent, None]:
        """What happens until the tool's task is done."""
        task.add_done_callback(self._wake)
        with self.waiting():
            while not (task.done() and self._events.empty()):
                event = await self._events.get()
                if event is not None:
                    yield event

    def _wake(self, task: asyncio.Task[ToolResult]) -> None:
        # A full queue needs none: its reader is not waiting, and sees that the task is done once it has read all.
        if not self._events.full():
            self._events.put_nowait(None)

    def finished(self, result: ToolResult) -> ToolFinished:
        return ToolFinished(result, HopSpend(TOOL_RUNNER, *self._ledger.balance()))


def _result_of(task: asyncio.Task[ToolResult], tool: Tool, context: DeadlineContext, call_id: str) -> ToolResult:
    """The result of a task that is done: its own, or a failure's."""
    if task.cancelled():
        own = asyncio.current_task()
        if own is not None and own.cancelling():
            raise asyncio.CancelledError  # the whole call is being ended, not only the tool
        error: BaseException | None = ToolError("the tool cancelled itself")
    else:
        error = task.exception()
    if error is None:
        return task.result()
    if context.is_expired or not isinstance(error, Exception) or isinstance(error, (Shed, Doomed)):
        raise error  # the call is refused, not answered: its caller is to hold back
    if not isinstance(error, ToolError):
        _LOG.warning(
            "tool %s (%s) failed: call %s, tenant %s, run %s",
            tool.spec.name,
            tool.origin,
            call_id,
            context.tenant_id,
            context.run_id,
            exc_info=error,
        )
    return failure(tool.spec.name, error)


async def _ended(task: asyncio.Task[ToolResult]) -> None:
    """End the tool's task. A cancel that arrives meanwhile goes on at once; the scope still owns the task then."""
    if not task.done():
        if not task.cancelling():  # by its scope: a second time at once would only disturb its closing
            task.cancel()
        await asyncio.wait([task])
    if not task.cancelled():
        task.exception()  # seen, so that asyncio does not complain: the caller left and wants no result


def _fitting(result: ToolResult, most_bytes: int) -> ToolResult:
    """The result with content that a message can carry."""
    content = sound(result.content)
    encoded = content.encode()
    if len(encoded) > most_bytes:
        mark = f"\n[cut: the result is longer than {most_bytes} bytes]"
        content = encoded[: most_bytes - len(mark)].decode(errors="ignore") + mark
    return replace(result, content=content)
