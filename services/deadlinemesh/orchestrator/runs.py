"""Runs from birth to oblivion: each is executed once, in a scope of its own, and watched by any number of calls."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from deadlinemesh.admission import Bulkhead, Lease
from deadlinemesh.conversation import Message
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
    ToolCallFinished,
    ToolCallProgress,
    Usage,
)
from deadlinemesh.orchestrator.ports import ModelPort, ToolPort
from deadlinemesh.orchestrator.upstreams import Upstreams
from deadlinemesh.policy import Limits
from deadlinemesh.telemetry import RunEnded, Telemetry

__all__ = ["AgentRun", "Runs", "Timed"]


MOST_KEPT = 16
"""So many times the largest message is what may be kept of a tenant's finished runs: a thousand runs need not be small."""

OBJECT = 200
"""About the bytes that an event or a message takes beside its text."""


@dataclass(frozen=True, slots=True)
class Timed:
    """An event and when it happened, in seconds since the run's call arrived."""

    elapsed: float
    event: RunEvent


class AgentRun:
    """One agent run: its budget, what has happened so far, and how it ended."""

    def __init__(self, context: DeadlineContext, grant: Grant, request_id: str, number: int) -> None:
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
        self._changed: asyncio.Event | None = asyncio.Event()
        self._watchers = 0
        self._task: BackgroundTask[None] | None = None
        self._place: Lease | None = None
        self._said: tuple[Message, ...] = ()
        self.size = 0
        """About the bytes that are kept of it, once it has been let go."""

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
        return self._said if self.agent is None else self.agent.history

    def emit(self, event: RunEvent) -> None:
        """Tell every watcher, present and future."""
        self._events.append(Timed(self.ledger.elapsed, event))
        self._wake()

    def watched(self) -> _Watching:
        """A block in which a call watches the run. When the last one is left before the run is over, the run is stopped."""
        return _Watching(self)

    async def told(self) -> AsyncGenerator[Timed, None]:
        """Everything that has happened, then everything that happens. Begins as the run does; raises what refused it."""
        seen = 0
        while True:
            if self.refused is not None:
                raise self.refused
            while seen < len(self._events) and (self.agent is not None or self.finished is not None):
                seen += 1
                yield self._events[seen - 1]
            if self.finished is not None:
                return
            assert self._changed is not None
            self._changed.clear()
            await self._changed.wait()

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
        if not self._watchers:  # the last may have left before it was over
            self._events = _compacted(self._events)
        kept = (*self._said, *(timed.event for timed in self._events))
        self.size = sum(map(_characters, kept)) + OBJECT * len(kept)

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
    ) -> None:
        self._background = background
        self._places = places
        self._models = models
        self._tools = tools
        self._limits = limits
        self._telemetry = telemetry
        self._upstreams = upstreams
        self._by_id: dict[str, AgentRun] = {}
        self._by_request: defaultdict[str, dict[str, AgentRun]] = defaultdict(dict)
        """Each tenant's runs by their request ids, in the order of their beginnings."""
        self._ended: dict[str, deque[tuple[float, AgentRun]]] = {}
        self._sizes: Counter[str] = Counter()
        """About the bytes that are kept of each tenant's."""
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
            raise NotFound([Violation("run_id", f"{run_id!r} is not a run of yours, or was forgotten")])
        return run

    def of(self, tenant_id: str) -> list[AgentRun]:
        """The tenant's runs, newest first."""
        self._forget(tenant_id)
        return list(reversed(self._by_request[tenant_id].values()))

    def start(self, grant: Grant, request_id: str, prepare: Callable[[AgentRun], Awaitable[Assignment]]) -> AgentRun:
        """Register a run for the current call, and have it wait for a place and then do as `prepare` says.

        A second call with the same request id finds it from now on. A run whose time is spent before it has begun is finished as
        any other that spends its time. If there is no place for it, or `prepare` raises, it is forgotten, and whoever watches is
        told why.
        """
        self._counts[grant.tenant.tenant_id] += 1
        number = self._counts[grant.tenant.tenant_id]
        run = AgentRun(current(), grant, request_id or f"req_{current().run_id[4:]}", number)
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
        if assignment is None:
            return
        agent = Agent(assignment, self._models, self._tools, self._upstreams, run.ledger, run.emit)
        run.begin(agent, assignment.model)
        run.ledger.leave(Phase.ADMISSION)
        try:
            async with narrowed_at(run.due_at, "run"):
                answer = await agent.run()
            # A model may ask for tools in a turn that offers none, and say nothing: what was found is still worth telling.
            partial = agent.cut_short or not answer
            answer = answer or partial_answer(agent, "The model ended without an answer")
            self._finish(run, Outcome.COMPLETED, None, "", answer, partial)
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
            self._finish(run, _OUTCOMES[cause], cause, _DETAILS[cause], partial_answer(agent), True)
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
        self._forget(context.tenant_id)
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
            large = self._sizes[tenant_id] > MOST_KEPT * self._limits.message_bytes and len(ended) > 1
            if not (old or large) and len(ended) <= self._limits.keep_runs_per_tenant:
                return
            ended.popleft()
            self._sizes[tenant_id] -= run.size
            del self._by_id[run.run_id], self._by_request[tenant_id][run.request_id]
        self._ended.pop(tenant_id, None)
        self._sizes.pop(tenant_id, None)


class _Watching:
    """One call's watch of a run. A class, as a generator would give the error that ends the block its traceback again."""

    def __init__(self, run: AgentRun) -> None:
        self._run = run

    def __enter__(self) -> None:
        self._run._watchers += 1

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        run = self._run
        run._watchers -= 1
        if run.refused is not None:
            run.refused.__traceback__ = None  # a frame on its way keeps the run
        if not run._watchers:
            run.stop(Cause.CLIENT_CANCELLED)
            if run.over:
                run._events = _compacted(run._events)


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
}
_DETAILS = {
    Cause.CLIENT_CANCELLED: "the run was cancelled, or its last watcher went away",
    Cause.DRAINING: "the orchestrator was shut down before the run could finish",
    Cause.DEADLINE_SPENT: "the deadline passed",
}


def _characters(kept: Message | RunEvent) -> int:
    match kept:
        case Message():
            return len(kept.content) + sum(len(call.arguments_json) for call in kept.tool_calls)
        case TextDelta():
            return len(kept.text)
        case ToolCallProgress():
            return len(kept.message)
        case ToolCallFinished():
            return len(kept.content) + len(kept.call.arguments_json)
    return 0


def _compacted(events: list[Timed]) -> list[Timed]:
    """The same story in fewer events: neighbouring pieces of text become one, at the instant of the last."""
    compact: list[Timed] = []
    for timed in events:
        before = compact[-1].event if compact else None
        if isinstance(timed.event, TextDelta) and isinstance(before, TextDelta):
            compact[-1] = Timed(timed.elapsed, TextDelta(before.text + timed.event.text))
        else:
            compact.append(timed)
    return compact
