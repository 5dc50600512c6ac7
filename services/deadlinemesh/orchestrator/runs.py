"""Runs from birth to oblivion: each is executed once, in a scope of its own, and watched by any number of calls."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, defaultdict, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from sys import getsizeof
from typing import Any

from deadlinemesh.admission import Bulkhead, Held, Lease
from deadlinemesh.conversation import Message, ToolCall
from deadlinemesh.deadline import (
    Background,
    BackgroundTask,
    DeadlineContext,
    Deferred,
    Ledger,
    Phase,
    current,
    narrowed_at,
)
from deadlinemesh.deadline.scope import current_scope
from deadlinemesh.errors import (
    Cause,
    DeadlineSpent,
    DeadlineSpentUpstream,
    Doomed,
    InternalFailure,
    MeshError,
    NotFound,
    Shed,
    Stopped,
    Violation,
    shown,
)
from deadlinemesh.orchestrator.agent import EXPIRES_WITH, Agent, Assignment
from deadlinemesh.orchestrator.answers import NO_ANSWER, partial_answer
from deadlinemesh.orchestrator.edge import HOP, Grant
from deadlinemesh.orchestrator.events import (
    Outcome,
    PhaseChanged,
    RunEvent,
    RunFinished,
    RunStarted,
    TextDelta,
    Timed,
    ToolCallFinished,
    ToolCallProgress,
    ToolCallStarted,
    Usage,
)
from deadlinemesh.orchestrator.memory import RETRY_AFTER, Memory
from deadlinemesh.orchestrator.packing import pack, unpack
from deadlinemesh.orchestrator.ports import ModelPort, ToolPort
from deadlinemesh.orchestrator.shortening import cut
from deadlinemesh.orchestrator.upstreams import Upstreams
from deadlinemesh.policy import Limits
from deadlinemesh.telemetry import RunEnded, Telemetry

__all__ = ["GROWS_BY", "AgentRun", "Runs"]


OBJECT = 200
"""About the bytes that an event or a message takes beside its text."""

PIECE = 4096
"""Characters of neighbouring pieces of text that become one event."""

COMPACT_EVERY = 256
"""Events after which those pieces are put together."""

EXCERPT = 4000
"""Characters of a tool's result that are told of a run that is large already."""

WATCHED_BY = 96 * 1024
"""Bytes of a call that watches a run which is over, counted as long as it has not read all of that: seen, about 90 kB."""

PACKED_UP_TO = 64 * 1024
"""Bytes as objects of a run whose record is packed once it is over: of a larger one most is text, and packing it would hold up
others.
"""

RECORD = 2048
"""About the bytes of a run that is over beside its events, conversation and answer."""

GROWS_BY = 16 * 1024
"""Bytes by which what a run holds is counted: so many as it begins, and as many more each time that it outgrows them."""


class _Reader:
    """How far one call has read a run's events."""

    __slots__ = ("seen",)

    def __init__(self) -> None:
        self.seen = 0


class AgentRun:
    """One agent run: its budget, what has happened so far, and how it ended.

    `held` is the memory that it holds as it begins, GROWS_BY included; more of what comes of it is held later, up to `most`
    bytes. `on_limit` is told which limit has ended it.
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
        self.ledger = Ledger(context.clock, context.started_at, opening=Phase.ADMISSION, on_change=self._phase_changed)
        self.agent: Agent | None = None
        self._events: list[Timed] = []
        self._readers: list[_Reader] = []
        self._compacted = 0
        """So many events at the beginning are compact."""
        self._grown, self._counted = 0, GROWS_BY
        """About the bytes that have come of it, and those of them that it holds by the budget."""
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
        """Both, once it has been let go, where they are not large."""
        self.size = 0
        """About the bytes that are kept of it, once it has been let go."""
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
    def over(self) -> bool:
        """Whether nothing more will happen."""
        return self.finished is not None or self.refused is not None

    @property
    def history(self) -> tuple[Message, ...]:
        """The conversation as far as it has come; always valid."""
        if self._packed is not None:
            return unpack(self._packed)[1]
        return self._said if self.agent is None else self.agent.history

    @property
    def events(self) -> Sequence[Timed]:
        """The events so far, in order. Neighbouring pieces of text may have been joined."""
        return self._events if self._packed is None else unpack(self._packed)[0]

    def emit(self, event: RunEvent) -> None:
        """Tell every watcher, present and future. Of a run that is half as large as it may be, no tool's progress is told any more,
        and of a result no more than the beginning: the model is given little more of it.
        """
        if isinstance(event, ToolCallProgress) and self._grown > self._most / 2:
            return
        if isinstance(event, ToolCallFinished) and self._grown + _size(event) > self._most / 2:
            event = replace(event, content=cut(event.content, EXCERPT))
        self._events.append(Timed(self.ledger.elapsed, event))
        self._grown += _size(event)
        if len(self._events) - self._compacted >= COMPACT_EVERY:
            self._compact(self._compacted)
        if self._grown > self._counted:
            self._count()
        self._wake()

    def _count(self) -> None:
        """Hold what has come of it. If that is too much, the run ends with what it has."""
        if self._held is None or self.over or self.limit:
            return
        if self._grown > self._most:
            self.limit = "run_bytes"
        elif self._held.grow(step := max(GROWS_BY, self._grown - self._counted)):
            self._counted += step
        else:
            self.limit = "memory_bytes"
        if self.limit:
            self._on_limit(self.limit)
            self.stop(Cause.SHED)

    def watched(self) -> _Watching:
        """A block in which a call watches the run. When the last one is left before the run is over, the run is stopped."""
        return _Watching(self)

    async def told(self) -> AsyncGenerator[Timed, None]:
        """Everything that has happened, then everything that happens. Begins as the run does; raises what refused it."""
        reader = _Reader()
        events = self.events
        self._readers.append(reader)
        try:
            while True:
                if self.refused is not None:
                    raise self.refused
                while reader.seen < len(events) and (self.agent is not None or self.finished is not None):
                    reader.seen += 1
                    yield events[reader.seen - 1]
                if self.finished is not None:
                    return
                assert self._changed is not None
                self._changed.clear()
                await self._changed.wait()
        finally:
            self._readers.remove(reader)

    async def ended(self) -> None:
        """Return when the run is over and nothing of it is at work."""
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
        """Execute the run in a scope of its own, which ends with the deadline and not with the call that began it."""
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
        """It has a place, and `agent` is about to work."""
        self.model, self.agent = model, agent
        self._wake()

    def refuse(self, error: MeshError) -> None:
        """The run never begins, and whoever watches it is told why."""
        error.__traceback__ = None  # which leads back here
        self.refused = error
        self._wake()

    def finish(self, outcome: Outcome, cause: Cause | None, detail: str, answer: str, partial: bool) -> RunFinished:
        """Close the books and tell the watchers."""
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

    def let_go(self) -> None:
        """Keep what can be asked for of a run whose task has ended, and nothing that leads back to the run.

        A task keeps the error that ended it, with every frame on its way. In a cycle with those, a run that is forgotten would
        wait for a collection of the old, which services rarely do.
        """
        self._said, self.agent, self._task = self.history, None, None
        self._changed = None  # all that is kept is small but this: it would pin down pages among gRPC's
        self.ledger.close()
        self._compact(0)
        self.size = sum(map(_size, chain(self._said, (timed.event for timed in self._events)))) + RECORD
        self._unpacked_size = self.size
        if self.finished is not None and self.size <= PACKED_UP_TO:
            self._packed = pack(self._events, self._said)
            self._events, self._said = [], ()  # readers have the list
            self.size = len(self._packed) + _size(self.finished) + RECORD
        if self._held is not None:
            kept = self._unpacked_size + WATCHED_BY if self._watchers else 0
            self._held.shrink_to(kept)
            self._held.grow(kept - self._held.amount)

    def watch(self) -> None:
        """Count a watcher. Raises Shed where what is kept of a run that is over does not fit what its tenant may hold: as long as
        it is watched it takes memory, though it may be forgotten here.
        """
        size = self._unpacked_size + WATCHED_BY
        if self._is_let_go and not self._watchers and self._held is not None and not self._held.grow(size):
            self._on_limit("memory_bytes")
            raise Shed(
                f"{size} bytes more do not fit what this tenant may hold: watch fewer runs at a time",
                retry_after=RETRY_AFTER,
                phase="admission",
            )
        self._watchers += 1

    def unwatch(self) -> None:
        """Count a watcher less. When the last one leaves before the run is over, the run is stopped."""
        self._watchers -= 1
        if self._watchers:
            return
        if self._is_let_go and self._held is not None:
            self._held.release()
        self.stop(Cause.CLIENT_CANCELLED)

    @property
    def _is_let_go(self) -> bool:
        return self._changed is None

    def _compact(self, start: int) -> None:
        """Put neighbouring pieces of text together, from this event on. Whoever reads goes on from where it was."""
        events = self._events[start:]
        stops = {reader.seen - start for reader in self._readers}
        compact: list[Timed] = []
        moved: dict[int, int] = {}
        pieces: list[str] = []
        length = 0
        for index, timed in enumerate((*events, None)):
            text = timed.event.text if timed is not None and isinstance(timed.event, TextDelta) else None
            if pieces and (text is None or index in stops or length + len(text) > PIECE):
                compact.append(Timed(events[index - 1].elapsed, TextDelta("".join(pieces))))
                pieces, length = [], 0
            moved[index] = start + len(compact)
            if text is not None:
                pieces.append(text)
                length += len(text)
            elif timed is not None:
                compact.append(timed)
        self._grown -= sum(_size(timed.event) for timed in events) - sum(_size(timed.event) for timed in compact)
        for reader in self._readers:
            reader.seen = moved.get(reader.seen - start, reader.seen)
        self._events[start:] = compact
        self._compacted = len(self._events)

    def _phase_changed(self, phase: Phase) -> None:
        if phase is Phase.RESPONSE:
            return  # that the run has finished is told in the same breath, and says more
        if self._task is not None and self._task.cause is not None:
            return  # it is being stopped: there is nothing that it could be at now
        iteration = 0 if self.agent is None else self.agent.iteration
        remaining = max(0.0, self.due_at - self.context.clock.monotonic())
        self.emit(PhaseChanged(phase, iteration, remaining, self.ledger.spent()))

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()


class Runs:
    """Every run that is known: those at work, and those that ended not too long ago."""

    def __init__(
        self,
        background: Background,
        places: Bulkhead,
        models: ModelPort,
        tools: ToolPort,
        limits: Limits,
        telemetry: Telemetry,
        upstreams: Upstreams,
        memory: Memory | None = None,
    ) -> None:
        """Without `memory`, what runs hold is not counted."""
        self._background = background
        self._places = places
        self._models = models
        self._tools = tools
        self._limits = limits
        self._telemetry = telemetry
        self._upstreams = upstreams
        self._memory = memory
        self._by_id: dict[str, AgentRun] = {}
        self._by_request: defaultdict[str, dict[str, AgentRun]] = defaultdict(dict)
        """Each tenant's runs by their request ids, in the order of their beginnings."""
        self._ended: dict[str, deque[tuple[float, AgentRun]]] = {}
        self._sizes: Counter[str] = Counter()
        """About the bytes that are kept of each tenant's."""
        self._kept = 0
        """Those of all tenants."""
        self._swept_at = 0.0
        """When the runs of all tenants were last looked through: one that does not come back is forgotten all the same."""
        self._counts: Counter[str] = Counter()
        self._when_idle = Deferred()

    def use(self, limits: Limits) -> None:
        """Keep finished runs by these limits."""
        self._limits = limits

    def flush(self) -> None:
        """Do now what could wait: remember and tell of every run that has ended."""
        self._when_idle.flush()

    def known(self, tenant_id: str, request_id: str) -> AgentRun | None:
        """The tenant's run of this request id, if it is known."""
        self._forget(tenant_id)
        return self._by_request[tenant_id].get(request_id)

    def get(self, tenant_id: str, run_id: str) -> AgentRun:
        """The tenant's run. Raises NotFound, not telling a run of somebody else's from none."""
        self._forget(tenant_id)
        run = self._by_id.get(run_id)
        if run is None or run.context.tenant_id != tenant_id:
            raise NotFound([Violation("run_id", f"{shown(run_id)} is not a run of yours, or was forgotten")])
        return run

    def of(self, tenant_id: str) -> Iterator[AgentRun]:
        """The tenant's runs, newest first. Not for use across turns of the event loop."""
        self._forget(tenant_id)
        return reversed(self._by_request.get(tenant_id, {}).values())

    def start(
        self,
        grant: Grant,
        request_id: str,
        prepare: Callable[[AgentRun], Awaitable[Assignment]],
        held: Held | None = None,
    ) -> AgentRun:
        """Register a run for the current call, and have it wait for a place and then do as `prepare` says.

        A second call with the same request id finds it from now on. A run whose time is spent before it has begun is finished as
        any other that spends its time. If there is no place for it, or `prepare` raises, it is forgotten, and whoever watches is
        told why. `held` is the memory of its request, which is its own from now on.
        """
        here, tenant_id = current(), grant.tenant.tenant_id
        self._counts[tenant_id] += 1
        run = AgentRun(
            *(here, grant, request_id or f"req_{here.run_id[4:]}", self._counts[tenant_id], held),
            most=self._limits.run_bytes,
            on_limit=partial(self._hit, tenant_id),
        )
        self._by_id[run.run_id] = self._by_request[run.context.tenant_id][run.request_id] = run
        run.emit(RunStarted())
        task = run.execute(self._background, lambda: self._execute(run, prepare))
        task.when_over(lambda: self._over(run, task.cause))
        return run

    async def _admitted(self, run: AgentRun, prepare: Callable[[AgentRun], Awaitable[Assignment]]) -> Assignment | None:
        """What the run is to do, once it has a place; None if it ends here."""
        try:
            # An answer that comes at the call's own deadline is lost, and so is a refusal.
            async with narrowed_at(run.due_at, "admission"):
                await run.take_place(self._places)
                return await prepare(run)
        except MeshError as error:
            if _ran_out(run, error):
                detail = f"the {run.grant.due:.3f} s that the run may use were spent before it could begin"
                self._finish(run, Outcome.DEADLINE_SPENT, Cause.DEADLINE_SPENT, detail, NO_ANSWER, True)
            else:
                self._refuse(run, error)
        except Exception:
            self._refuse(run, InternalFailure("the orchestrator could not prepare this run; its log says why", hop=HOP))
            raise
        return None

    async def _execute(self, run: AgentRun, prepare: Callable[[AgentRun], Awaitable[Assignment]]) -> None:
        assignment = await self._admitted(run, prepare)
        del prepare
        if assignment is None:
            return
        agent = Agent(
            *(assignment, self._models, self._tools, self._upstreams, run.ledger, run.emit),
            on_limit=partial(self._hit, run.context.tenant_id),
        )
        run.begin(agent, assignment.model)
        run.ledger.leave(Phase.ADMISSION)
        try:
            async with narrowed_at(run.due_at, "run"):
                answer = await agent.run()
            # A model may ask for tools in a turn that offers none, and say nothing: what was found is still worth telling.
            is_partial = agent.cut_short or not answer
            answer = answer or partial_answer(agent, "The model ended without an answer")
            self._finish(run, Outcome.COMPLETED, None, "", answer, is_partial)
        except DeadlineSpent:  # of the run, or of the step at work just then: the client knows of the run
            detail = f"the {run.grant.due:.3f} s that the run may use are spent"
            self._finish(run, Outcome.DEADLINE_SPENT, Cause.DEADLINE_SPENT, detail, partial_answer(agent), True)
        except (DeadlineSpentUpstream, Doomed) as spent:  # or what is left is too little for anything
            self._finish(run, Outcome.DEADLINE_SPENT, spent.cause, str(spent), partial_answer(agent), True)
        except MeshError as failed:
            cause = failed.cause if isinstance(failed, Stopped) else Cause.UPSTREAM_FAILED
            self._finish(run, Outcome.FAILED, cause, str(failed), partial_answer(agent), True)
        except asyncio.CancelledError:
            scope = current_scope()
            cause = Cause.CLIENT_CANCELLED if scope is None or scope.cause is None else scope.cause
            detail = f"{_DETAILS[cause]}: {run.limit}" if run.limit else _DETAILS[cause]
            self._finish(run, _OUTCOMES[cause], cause, detail, partial_answer(agent), True)
            raise
        except Exception:
            detail = "the orchestrator failed; its log says why"
            self._finish(run, Outcome.FAILED, Cause.INTERNAL, detail, partial_answer(agent), True)
            raise

    def _over(self, run: AgentRun, cause: Cause | None) -> None:
        run.leave_place()
        if not run.over:  # it was stopped before it began
            cause = cause or Cause.CLIENT_CANCELLED
            self._finish(run, _OUTCOMES[cause], cause, _DETAILS[cause], "", True)
        self._when_idle(self._let_go, run)

    def _let_go(self, run: AgentRun) -> None:
        run.let_go()
        if run.finished is not None:
            self._remember(run, run.finished)

    def _refuse(self, run: AgentRun, error: MeshError) -> None:
        del self._by_id[run.run_id], self._by_request[run.context.tenant_id][run.request_id]
        run.refuse(error)

    def _finish(
        self, run: AgentRun, outcome: Outcome, cause: Cause | None, detail: str, answer: str, partial: bool
    ) -> None:
        run.finish(outcome, cause, detail, answer, partial)

    def _remember(self, run: AgentRun, finished: RunFinished) -> None:
        context = run.context
        ended_at = context.started_at + finished.elapsed
        self._ended.setdefault(context.tenant_id, deque()).append((ended_at, run))
        self._sizes[context.tenant_id] += run.size
        self._kept += run.size
        self._forget(context.tenant_id)
        while self._kept > self._limits.keep_bytes:
            self._drop_oldest(max(self._sizes, key=self._sizes.__getitem__))
        if ended_at - self._swept_at >= self._limits.keep_finished_runs / 10:
            self._swept_at = ended_at
            for tenant_id in tuple(self._ended):
                self._forget(tenant_id)
        self._telemetry.record(
            RunEnded(
                hop=HOP,
                tenant_id=context.tenant_id,
                tier=context.tier,
                run_id=run.run_id,
                started_at=context.started_at,
                due_at=run.due_at,
                ended_at=ended_at,
                outcome=finished.outcome,
                cause=finished.cause or "",
                phases={str(phase): seconds for phase, seconds in finished.phases.items()},
                unattributed=finished.unattributed,
            )
        )

    def _forget(self, tenant_id: str) -> None:
        ended = self._ended.get(tenant_id)
        while ended:
            ended_at, run = ended[0]
            old = run.context.clock.monotonic() - ended_at >= self._limits.keep_finished_runs
            large = self._sizes[tenant_id] > self._limits.keep_part * self._limits.keep_bytes and len(ended) > 1
            if not (old or large) and len(ended) <= self._limits.keep_runs_per_tenant:
                return
            self._drop_oldest(tenant_id)

    def _drop_oldest(self, tenant_id: str) -> None:
        ended = self._ended[tenant_id]
        _, run = ended.popleft()
        self._sizes[tenant_id] -= run.size
        self._kept -= run.size
        del self._by_id[run.run_id], self._by_request[tenant_id][run.request_id]
        if not ended:
            del self._ended[tenant_id], self._sizes[tenant_id]

    def _hit(self, tenant_id: str, limit: str) -> None:
        if self._memory is not None:
            self._memory.hit(tenant_id, limit)


class _Watching:
    """One call's watch of a run. A class, as a generator would give the error that ends the block its traceback again."""

    def __init__(self, run: AgentRun) -> None:
        self._run = run

    def __enter__(self) -> None:
        self._run.watch()

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        run = self._run
        if run.refused is not None:
            run.refused.__traceback__ = None  # a frame on its way keeps the run
        run.unwatch()


def _ran_out(run: AgentRun, error: MeshError) -> bool:
    """Whether `error`, here or at a hop below, says that the run's own time is spent. Once it has passed, a refusal does too."""
    left = run.due_at - run.context.clock.monotonic()
    if isinstance(error, (Shed, Doomed)):
        return left <= 0
    return isinstance(error, (DeadlineSpent, DeadlineSpentUpstream)) and left <= EXPIRES_WITH


_OUTCOMES = {
    Cause.CLIENT_CANCELLED: Outcome.CANCELLED,
    Cause.DRAINING: Outcome.FAILED,
    Cause.DEADLINE_SPENT: Outcome.DEADLINE_SPENT,
    Cause.SHED: Outcome.FAILED,
}
_DETAILS = {
    Cause.CLIENT_CANCELLED: "the run was cancelled, or its last watcher went away",
    Cause.DRAINING: "the orchestrator was shut down before the run could finish",
    Cause.DEADLINE_SPENT: "the deadline passed",
    Cause.SHED: "the run became larger than it may be",
}


def _size(kept: Message | RunEvent) -> int:
    """About the bytes that it takes. A text of other letters than Latin ones has two or four for each."""
    match kept:
        case Message():
            return getsizeof(kept.content) + OBJECT + sum(map(_size_of_call, kept.tool_calls))
        case TextDelta():
            return getsizeof(kept.text) + OBJECT
        case ToolCallProgress():
            return getsizeof(kept.message) + OBJECT
        case ToolCallStarted():
            return _size_of_call(kept.call) + OBJECT
        case ToolCallFinished():
            return getsizeof(kept.content) + OBJECT
        case PhaseChanged():
            return getsizeof(kept.spent) + 2 * OBJECT
        case RunFinished():
            return getsizeof(kept.answer) + getsizeof(kept.detail) + 4 * OBJECT
        case _:
            return OBJECT


def _size_of_call(call: ToolCall) -> int:
    return getsizeof(call.arguments_json) + getsizeof(call.id) + getsizeof(call.name) + OBJECT
