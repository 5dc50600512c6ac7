"""One tool call, from its queue to its result, independent of gRPC."""

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
"""Progress events that may wait for a slow reader. When there are more, the tool waits."""

PROGRESS_CHARACTERS = 1000
"""Characters of a progress message. It is for people."""

MOST_PROGRESS_EVENTS = 10_000
"""Progress events of one call. Later events are dropped. A call of 300 s may send 33 per second."""

MOST_PROGRESS_BYTES = 1_000_000
"""Bytes of the progress messages of one call. Later events are dropped."""

LONG_ARGUMENTS = 8192
"""Characters of arguments. Longer arguments are checked in a thread, not on the event loop. So many
take 16 ms if they are whole numbers.
"""

MESSAGE_OVERHEAD = 512
"""Bytes reserved in a result message for everything but the content. Fewer are needed."""


class ToolService:
    """Runs the tools of a registry. `clock` must be the clock of the calls' contexts.

    A result that would not fit into a message of `message_bytes` is cut, with a mark. A call with
    more than `longest_arguments` characters of arguments is not made. Without `kept`, no result is
    kept.
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
        """The tools of future calls."""
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
        """Return the holding registry, the current tenant's tool, and the reader of its arguments.

        Raises NotFound.
        """
        tenant_id = current().tenant_id
        for registry in chain((self.registry,), self._past):
            if registry.allows(tenant_id, name):  # a past one allows it, the current may have it
                holder = self.registry if self.registry.has(name) else registry
                return holder, *holder.tool(name)
        known = choices(one.name for one in self.specs())
        raise NotFound([Violation("name", f"there is no tool {shown(name)}; {known}")])

    async def call(self, name: str, arguments_json: str, call_id: str = "") -> AsyncGenerator[ToolEvent, None]:
        """Run a tool. Yields `ToolStarted`, any number of `ToolProgress`, then `ToolFinished`.

        A call with wrong arguments, or with a kept result, yields only `ToolFinished`.

        A tool's failure is a result. Raises NotFound for an unknown tool, and Shed or Doomed if no
        slot comes free in time. A spent deadline and a cancellation pass through. To end the tool,
        close the generator with `contextlib.aclosing`.
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
        """Use `registry` and `kept` for future calls. Returns a Rest that closes the old registry.

        Runs that began under the old registry may still use the tools that are no longer in the new
        one.
        """
        old, self.registry = self.registry, registry
        self._kept = kept  # a tool of the same name in another registry may be a different tool
        self._most_bytes = message_bytes - MESSAGE_OVERHEAD
        self._longest_arguments = longest_arguments
        needed_for = 0.0
        if registry.policy is not None and old.policy is not None:
            needed_for = self._past.keep(old, old.policy, registry.policy)
            registry.take_place_of(old, self._past.shares(registry.policy))
        return Rest(old.aclose, needed_for)

    def warm(self) -> None:
        """Start the keeper of workers, so that the first call need not wait for it.

        Raises OSError if that is not possible.
        """
        self.registry.warm()

    async def aclose(self) -> None:
        """End all processes and close all connections.

        First waits REPORT_ORPHAN_AFTER seconds for running calls. Calls that are still running then
        are orphans.
        """
        await self.registry.aclose(REPORT_ORPHAN_AFTER)


async def _read(
    arguments: ArgumentsReader, text: str, longest: int, running: _Running
) -> tuple[dict[str, Any], list[str]]:
    """Check like `ArgumentsReader.read`. Long arguments are checked in a thread.

    That thread shares the interpreter with the event loop.
    """
    if len(text) > longest:
        return {}, [f"arguments: they have {len(text)} characters; give at most {longest}"]
    if len(text) <= LONG_ARGUMENTS:
        return arguments.read(text)
    with running.waiting():
        return await asyncio.to_thread(arguments.read, text)


class _Running:
    """The `Call` that a tool sees. It turns the tool's reports into events."""

    def __init__(self, ledger: Ledger[Phase]) -> None:
        self._ledger = ledger
        self._begun = False
        self._told = 0
        self._told_bytes = 0
        # One place more than progress may fill, so that neither `begun` nor the end ever waits.
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
            await asyncio.sleep(0)  # a dropped event costs the tool no more time than a sent one
            return
        within = 0.0 if math.isnan(fraction) else min(1.0, max(0.0, fraction))
        await self._events.put(ToolProgress(within, text))

    def waiting(self) -> AbstractContextManager[None]:
        """The block is part of the wait for the tool to begin."""
        return self._ledger.phase(Phase.TOOL_QUEUE)

    async def events_until(self, task: asyncio.Task[ToolResult]) -> AsyncGenerator[ToolEvent, None]:
        """Yield the call's events until the tool's task is done."""
        task.add_done_callback(self._wake)
        with self.waiting():
            while not (task.done() and self._events.empty()):
                event = await self._events.get()
                if event is not None:
                    yield event

    def _wake(self, task: asyncio.Task[ToolResult]) -> None:
        # A full queue needs no wake-up: its reader is not waiting. After the last event it sees
        # that the task is done.
        if not self._events.full():
            self._events.put_nowait(None)

    def finished(self, result: ToolResult) -> ToolFinished:
        return ToolFinished(result, HopSpend(TOOL_RUNNER, *self._ledger.balance()))


def _result_of(task: asyncio.Task[ToolResult], tool: Tool, context: DeadlineContext, call_id: str) -> ToolResult:
    """The result of a task that is done. A failure becomes a result, too.

    Raises a spent deadline, Shed, Doomed, a cancellation of the whole call, and errors that are not
    an `Exception`.
    """
    if task.cancelled():
        own = asyncio.current_task()
        if own is not None and own.cancelling():
            raise asyncio.CancelledError  # the whole call is cancelled, not only the tool
        error: BaseException | None = ToolError("the tool cancelled itself")
    else:
        error = task.exception()
    if error is None:
        return task.result()
    if context.is_expired or not isinstance(error, Exception) or isinstance(error, (Shed, Doomed)):
        raise error  # Shed and Doomed refuse the call itself: its caller must hold back
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
    """End the tool's task and wait for it.

    A cancellation during the wait passes through at once. The scope still owns the task then.
    """
    if not task.done():
        if not task.cancelling():  # its scope has not: a second one disturbs cleanup
            task.cancel()
        await asyncio.wait([task])
    if not task.cancelled():
        task.exception()  # marks it as retrieved: the caller has left, and asyncio would log it


def _fitting(result: ToolResult, most_bytes: int) -> ToolResult:
    """The result, with its content cut to fit into a message."""
    content = sound(result.content)
    encoded = content.encode()
    if len(encoded) > most_bytes:
        mark = f"\n[cut: the result is longer than {most_bytes} bytes]"
        content = encoded[: most_bytes - len(mark)].decode(errors="ignore") + mark
    return replace(result, content=content)
