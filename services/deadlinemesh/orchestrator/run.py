"""One run: its state, its events, its watchers."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from typing import Any

from deadlinemesh.admission import Bulkhead, Held, Lease
from deadlinemesh.deadline import Background, BackgroundTask, DeadlineContext
from deadlinemesh.errors import Cause, MeshError, Shed, Stopped
from deadlinemesh.orchestrator.agent import Agent
from deadlinemesh.orchestrator.edge import Grant
from deadlinemesh.orchestrator.events import (
    Outcome,
    PhaseChanged,
    RunEvent,
    RunFinished,
    Timed,
    ToolCallFinished,
    ToolCallProgress,
    Usage,
)
from deadlinemesh.orchestrator.log import EventLog, size_of
from deadlinemesh.orchestrator.memory import RETRY_AFTER
from deadlinemesh.orchestrator.packing import pack, unpack
from deadlinemesh.orchestrator.shortening import cut
from deadlinemesh.vocabulary import Message, Phase, phase_ledger

__all__ = ["GROWTH_BYTES", "AgentRun"]

EXCERPT = 4000
"""Characters of a tool's result in the events of a run that is large already."""

WATCHED_BYTES = 96 * 1024
"""Bytes counted for a call that watches a finished run, until it has read all. About 90 kB were measured."""

PACKED_UP_TO = 64 * 1024
"""Bytes, as objects, of the largest finished run that is packed. A larger one is mostly text, and
packing it would hold up the event loop."""

RECORD_BYTES = 2048
"""About the bytes of a finished run beside its events, conversation and answer."""

GROWTH_BYTES = 16 * 1024
"""Bytes that a run reserves when it begins, and again each time it outgrows its reservation."""


class AgentRun:
    """One agent run: its budget, its events and its end.

    `held` is its reserved memory, GROWTH_BYTES included. It grows with the run, up to `most` bytes.
    `on_limit` is called with the name of the limit that ends the run.
    """

    def __init__(
        self,
        context: DeadlineContext,
        grant: Grant,
        request_id: str,
        number: int,
        held: Held | None = None,
        most: float = math.inf,
        on_limit: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.context = context
        self.grant = grant
        self.request_id = request_id
        self.number = number
        """Counts the tenant's runs in this orchestrator; later runs have higher ones. It tells nothing of other tenants'."""
        self.created_at = time.time()
        """By the wall clock, for people."""
        self.model = ""
        self.finished: RunFinished | None = None
        self.refused: MeshError | None = None
        """Why the run never began."""
        self.ledger = phase_ledger(
            context.clock, context.started_at, opening=Phase.ADMISSION, on_change=self._phase_changed
        )
        self.agent: Agent | None = None
        self._log = EventLog()
        self._counted = GROWTH_BYTES
        """Bytes of the log that are reserved."""
        self._held = held
        self._most = most
        self._on_limit = on_limit
        self.limit = ""
        """The limit that has ended it; empty while none has."""
        self._changed: asyncio.Event | None = asyncio.Event()
        self._watchers = 0
        self._task: BackgroundTask[None] | None = None
        self._place: Lease | None = None
        self._said: tuple[Message, ...] = ()
        self._packed: bytes | None = None
        """Events and conversation of an archived run, unless they are large."""
        self.size = 0
        """About the bytes of an archived run."""
        self._unpacked_size = 0

    @property
    def run_id(self) -> str:
        """The run's name."""
        return self.context.run_id

    @property
    def due_at(self) -> float:
        """The instant at which the answer must be on its way."""
        return self.context.started_at + self.grant.due

    @property
    def ended_at(self) -> float:
        """The instant of its end. Only for a finished run."""
        assert self.finished is not None
        return self.context.started_at + self.finished.elapsed

    @property
    def over(self) -> bool:
        """True if nothing more will happen."""
        return self.finished is not None or self.refused is not None

    @property
    def history(self) -> tuple[Message, ...]:
        """The conversation as far as it has come; always valid."""
        if self._packed is not None:
            return unpack(self._packed)[1]
        return self._said if self.agent is None else self.agent.history

    @property
    def events(self) -> Sequence[Timed]:
        """The events so far, in order. Adjacent text deltas may be joined."""
        return self._log.events if self._packed is None else unpack(self._packed)[0]

    def emit(self, event: RunEvent) -> None:
        """Add an event, for present and later watchers.

        A run of half its largest size drops progress of tools, and keeps an excerpt of each result: its
        model reads little more.
        """
        if isinstance(event, ToolCallProgress) and self._log.size > self._most / 2:
            return
        if isinstance(event, ToolCallFinished) and self._log.size + size_of(event) > self._most / 2:
            event = replace(event, content=cut(event.content, EXCERPT))
        self._log.append(Timed(self.ledger.elapsed, event))
        if self._log.size > self._counted:
            self._count()
        self._wake()

    def _count(self) -> None:
        """Reserve more memory. A run that gets none ends with what it has."""
        if self._held is None or self.over or self.limit:
            return
        if self._log.size > self._most:
            self.limit = "run_bytes"
        elif self._held.grow(step := max(GROWTH_BYTES, self._log.size - self._counted)):
            self._counted += step
        else:
            self.limit = "memory_bytes"
        if self.limit:
            self._on_limit(self.limit)
            self.stop(Cause.SHED)

    def watched(self) -> _Watching:
        """Context manager of a call that watches the run. The run stops when its last watcher leaves early."""
        return _Watching(self)

    async def follow(self) -> AsyncGenerator[Timed, None]:
        """Yield all events, past and future, once the run has begun. Raises the error that refused it."""
        if self._packed is not None:
            for timed in self.events:
                yield timed
            return
        with self._log.reader() as reader:
            while True:
                if self.refused is not None:
                    raise self.refused
                if self.agent is not None or self.finished is not None:
                    while unread := reader.read():
                        for timed in unread:
                            yield timed
                if self.finished is not None:
                    return
                assert self._changed is not None
                self._changed.clear()
                await self._changed.wait()

    async def ended(self) -> None:
        """Wait for the run's end, and for the end of all its work."""
        if self._task is not None:
            with suppress(Stopped):
                await self._task.wait()
        while not self.over:  # one that was stopped before it began is finished a turn of the event loop after its task
            assert self._changed is not None
            self._changed.clear()
            await self._changed.wait()

    def stop(self, cause: Cause) -> None:
        """End the run. A run that is over ignores it."""
        if self._task is not None and not self.over:
            self._task.stop(cause)

    def execute(self, background: Background, work: Callable[[], Coroutine[Any, Any, None]]) -> BackgroundTask[None]:
        """Start `work` in a scope of the run's own. It ends with the deadline, not with the call that began it."""
        self._task = background.spawn(work, until=self.context.absolute_deadline, name=f"run {self.run_id}")
        return self._task

    async def take_place(self, places: Bulkhead) -> None:
        """Wait for a place among the runs that are at work."""
        self._place = await places.acquire()
        self._place.useful()  # a run that is cut gives the answer that it has

    def leave_place(self) -> None:
        """Give it back, if there is one."""
        if self._place is not None:
            self._place.release()
            self._place = None

    def begin(self, agent: Agent, model: str) -> None:
        """Mark the run as begun, by `agent`."""
        self.model, self.agent = model, agent
        self._wake()

    def refuse(self, error: MeshError) -> None:
        """Refuse the run with `error`, which its watchers get."""
        error.__traceback__ = None  # it refers to the run
        self.refused = error
        self._wake()

    def finish(self, outcome: Outcome, cause: Cause | None, detail: str, answer: str, partial: bool) -> RunFinished:
        """Close the ledger and emit the last event."""
        agent, ledger = self.agent, self.ledger
        ledger.enter(Phase.RESPONSE)
        elapsed, phases = ledger.balance()
        self.finished = RunFinished(
            outcome=outcome,
            cause=cause,
            detail=detail,
            answer=answer,
            partial=partial,
            granted=self.grant.granted,
            elapsed=elapsed,
            phases=phases,
            usage=Usage() if agent is None else agent.usage,
            iterations=0 if agent is None else agent.iteration,
        )
        self.emit(self.finished)
        return self.finished

    def archive(self) -> None:
        """Keep the record of a run whose task has ended, without references back to the run.

        A task keeps the error that ended it, with every frame on its way. In a cycle with those, a
        forgotten run would wait for a collection of the oldest generation, which is rare.
        """
        self._said, self.agent, self._task = self.history, None, None
        self._changed = None  # small, but it would pin pages among gRPC's allocations
        self.ledger.close()
        self._log.compact()
        self.size = sum(map(size_of, chain(self._said, (timed.event for timed in self._log.events)))) + RECORD_BYTES
        self._unpacked_size = self.size
        if self.finished is not None and self.size <= PACKED_UP_TO:
            self._packed = pack(self._log.events, self._said)
            self._log, self._said = EventLog(), ()  # open readers keep the old log
            self.size = len(self._packed) + size_of(self.finished) + RECORD_BYTES
        if self._held is not None:
            kept = self._unpacked_size + WATCHED_BYTES if self._watchers else 0
            self._held.shrink_to(kept)
            self._held.grow(kept - self._held.amount)

    def watch(self) -> None:
        """Add a watcher. Raises Shed if an archived run does not fit its tenant's memory: it takes memory
        as long as it is watched, even if it is forgotten meanwhile.
        """
        size = self._unpacked_size + WATCHED_BYTES
        if self._is_archived and not self._watchers and self._held is not None and not self._held.grow(size):
            self._on_limit("memory_bytes")
            raise Shed(
                f"{size} bytes more do not fit what this tenant may hold: watch fewer runs at a time",
                retry_after=RETRY_AFTER,
                phase="admission",
            )
        self._watchers += 1

    def unwatch(self) -> None:
        """Remove a watcher. The last one that leaves early stops the run."""
        self._watchers -= 1
        if self._watchers:
            return
        if self._is_archived and self._held is not None:
            self._held.release()
        self.stop(Cause.CLIENT_CANCELLED)

    @property
    def _is_archived(self) -> bool:
        return self._changed is None

    def _phase_changed(self, phase: Phase) -> None:
        if phase is Phase.RESPONSE:
            return  # RunFinished follows at once and says more
        if self._task is not None and self._task.cause is not None:
            return  # it is being stopped
        iteration = 0 if self.agent is None else self.agent.iteration
        remaining = max(0.0, self.due_at - self.context.clock.monotonic())
        self.emit(PhaseChanged(phase, iteration, remaining, self.ledger.spent()))

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()


class _Watching:
    """One call's watch of a run. A class, because a generator would add its traceback to the block's error."""

    def __init__(self, run: AgentRun) -> None:
        self._run = run

    def __enter__(self) -> None:
        self._run.watch()

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        run = self._run
        if run.refused is not None:
            run.refused.__traceback__ = None  # a frame on its way keeps the run
        run.unwatch()
