"""One run: its state, its events and its watchers."""

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
from deadlinemesh.identity.grants import Grant
from deadlinemesh.orchestrator.agent import Agent
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
"""Characters of a tool's result in the events of a run that is already large."""

WATCHED_BYTES = 96 * 1024
"""Bytes counted for a watched finished run, besides its size as objects. About 90 kB were
measured."""

PACKED_UP_TO = 64 * 1024
"""Bytes, as objects, of the largest finished run that is packed. A larger run is mostly text, and
packing it would block the event loop."""

RECORD_BYTES = 2048
"""Bytes of a finished run without its events, conversation and answer, roughly."""

GROWTH_BYTES = 16 * 1024
"""Bytes that a run reserves when it begins. It reserves at least as many when it outgrows them."""


class AgentRun:
    """One agent run: its budget, its events and its end.

    `held` is its reserved memory, including GROWTH_BYTES. It grows with the run's events, which may
    have up to `most` bytes. `on_limit` is called with the name of the limit that ends the run.
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
        """Number of the run among its tenant's in this orchestrator. Later runs have higher
        numbers. It reveals nothing about other tenants."""
        self.created_at = time.time()
        """Unix time of the beginning, for people."""
        self.model = ""
        self.finished: RunFinished | None = None
        self.refused: MeshError | None = None
        """The error that refused the run before it began; None if there is none."""
        self.ledger = phase_ledger(
            context.clock, context.started_at, opening=Phase.ADMISSION, on_change=self._phase_changed
        )
        self.agent: Agent | None = None
        self._log = EventLog()
        self._counted = GROWTH_BYTES
        """Bytes reserved for the log."""
        self._held = held
        self._most = most
        self._on_limit = on_limit
        self.limit = ""
        """The limit that ended the run; empty if none did."""
        self._changed: asyncio.Event | None = asyncio.Event()
        self._watchers = 0
        self._task: BackgroundTask[None] | None = None
        self._place: Lease | None = None
        self._said: tuple[Message, ...] = ()
        self._packed: bytes | None = None
        """Events and conversation of an archived run, compressed. None if they are large."""
        self.size = 0
        """Bytes of an archived run, roughly."""
        self._unpacked_size = 0

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self.context.run_id

    @property
    def due_at(self) -> float:
        """The instant at which the answer must be on its way."""
        return self.context.started_at + self.grant.due

    @property
    def ended_at(self) -> float:
        """The instant at which the run ended. Only for a finished run."""
        assert self.finished is not None
        return self.context.started_at + self.finished.elapsed

    @property
    def over(self) -> bool:
        """True if the run is finished or was refused."""
        return self.finished is not None or self.refused is not None

    @property
    def history(self) -> tuple[Message, ...]:
        """The conversation so far. Always valid."""
        if self._packed is not None:
            return unpack(self._packed)[1]
        return self._said if self.agent is None else self.agent.history

    @property
    def events(self) -> Sequence[Timed]:
        """The events so far, in order. Adjacent text deltas may be joined."""
        return self._log.events if self._packed is None else unpack(self._packed)[0]

    def emit(self, event: RunEvent) -> None:
        """Add an event for current and later watchers.

        A run with more than half of its largest size drops tools' progress, and keeps only an
        excerpt of each result. Its model reads little more.
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
        """Reserve more memory. A run that gets none is stopped, and its answer is partial."""
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
        """Context manager of a call that watches the run.

        The run is stopped if its last watcher leaves before the run is over.
        """
        return _Watching(self)

    async def follow(self) -> AsyncGenerator[Timed, None]:
        """Yield all events, past and future, as soon as the run has begun.

        Raises the error that refused the run.
        """
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
        """Wait until the run is over and all its work has ended."""
        if self._task is not None:
            with suppress(Stopped):
                await self._task.wait()
        # A run that was stopped before it began is over one turn of the event loop after its task.
        while not self.over:
            assert self._changed is not None
            self._changed.clear()
            await self._changed.wait()

    def stop(self, cause: Cause) -> None:
        """Stop the run. Does nothing if the run is over."""
        if self._task is not None and not self.over:
            self._task.stop(cause)

    def execute(self, background: Background, work: Callable[[], Coroutine[Any, Any, None]]) -> BackgroundTask[None]:
        """Start `work` in a separate scope. It may outlive the current call, up to the deadline."""
        self._task = background.spawn(work, until=self.context.absolute_deadline, name=f"run {self.run_id}")
        return self._task

    async def take_place(self, places: Bulkhead) -> None:
        """Wait for a slot among the running runs. Raises Shed and Doomed."""
        self._place = await places.acquire()
        self._place.useful()  # even a run that is cut gives a partial answer

    def leave_place(self) -> None:
        """Release the run's slot, if it has one."""
        if self._place is not None:
            self._place.release()
            self._place = None

    def begin(self, agent: Agent, model: str) -> None:
        """Mark the run as begun, with `agent` and `model`."""
        self.model, self.agent = model, agent
        self._wake()

    def refuse(self, error: MeshError) -> None:
        """Refuse the run. `follow` raises `error` to its watchers."""
        error.__traceback__ = None  # its frames refer to the run
        self.refused = error
        self._wake()

    def finish(self, outcome: Outcome, cause: Cause | None, detail: str, answer: str, partial: bool) -> RunFinished:
        """Enter the response phase. Emit and return the last event, with the ledger's balance."""
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
        """Turn a run with an ended task into a compact record, without reference cycles.

        A task keeps the error that ended it, with all frames of its traceback. In a cycle with
        those, a forgotten run would wait for a collection of the oldest generation, which is rare.
        """
        self._said, self.agent, self._task = self.history, None, None
        self._changed = None  # small, but it would pin memory pages among gRPC's allocations
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
        """Add a watcher.

        Raises Shed if an archived run does not fit its tenant's memory. A watched run takes memory,
        even if the store forgets it meanwhile.
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
        """Remove a watcher. Stops the run if it was the last watcher and the run is not over."""
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
            return  # RunFinished follows at once, with the same times
        if self._task is not None and self._task.cause is not None:
            return  # the run is being stopped
        iteration = 0 if self.agent is None else self.agent.iteration
        remaining = max(0.0, self.due_at - self.context.clock.monotonic())
        self.emit(PhaseChanged(phase, iteration, remaining, self.ledger.spent()))

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()


class _Watching:
    """Context manager of one call that watches a run.

    A class, because a generator would add its traceback to the block's error.
    """

    def __init__(self, run: AgentRun) -> None:
        self._run = run

    def __enter__(self) -> None:
        self._run.watch()

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        run = self._run
        if run.refused is not None:
            run.refused.__traceback__ = None  # its frames refer to the run
        run.unwatch()
