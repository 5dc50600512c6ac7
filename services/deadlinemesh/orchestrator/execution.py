"""One run from its admission to its outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from deadlinemesh.admission import Bulkhead
from deadlinemesh.deadline import Background, Deferred, narrowed_at
from deadlinemesh.deadline.lowlevel import current_scope
from deadlinemesh.errors import (
    Cause,
    DeadlineSpent,
    DeadlineSpentUpstream,
    Doomed,
    InternalFailure,
    MeshError,
    Shed,
    Stopped,
)
from deadlinemesh.orchestrator.agent import Agent
from deadlinemesh.orchestrator.answers import NO_ANSWER, partial_answer
from deadlinemesh.orchestrator.assignment import Assignment
from deadlinemesh.orchestrator.catalog import Catalog
from deadlinemesh.orchestrator.events import Outcome, RunFinished
from deadlinemesh.orchestrator.failures import EXPIRES_WITH
from deadlinemesh.orchestrator.planning import RunOrder, assignment_of, model_of
from deadlinemesh.orchestrator.ports import ModelPort, ToolPort
from deadlinemesh.orchestrator.run import AgentRun
from deadlinemesh.orchestrator.store import RunStore
from deadlinemesh.orchestrator.upstreams import Upstreams
from deadlinemesh.policy import Policy
from deadlinemesh.telemetry import RunEnded, Telemetry
from deadlinemesh.vocabulary import Phase
from deadlinemesh.vocabulary.hops import ORCHESTRATOR

__all__ = ["Executor"]


class Executor:
    """Executes runs: waits for a slot, plans, runs the agent, and turns its end into an outcome.

    `on_limit` is called with a tenant's id and the name of a limit that one of its runs has
    reached.
    """

    def __init__(
        self,
        background: Background,
        slots: Bulkhead,
        models: ModelPort,
        tools: ToolPort,
        store: RunStore,
        telemetry: Telemetry,
        on_limit: Callable[[str, str], None] = lambda tenant_id, limit: None,
    ) -> None:
        self._background = background
        self._slots = slots
        self._models = models
        self._tools = tools
        self._upstreams = Upstreams(telemetry, ORCHESTRATOR)
        self._catalog = Catalog(tools, self._upstreams)
        self._store = store
        self._telemetry = telemetry
        self._on_limit = on_limit
        self._when_idle = Deferred()

    def start(self, run: AgentRun, order: RunOrder, policy: Policy) -> None:
        """Execute `run` by `order` and `policy`, in a separate scope.

        A run that spends its time before it begins ends with the outcome DEADLINE_SPENT. A run that
        gets no slot, or has an order that cannot be met, is refused and released from the store.
        """
        task = run.execute(self._background, lambda: self._execute(run, order, policy))
        task.when_over(lambda: self._over(run, task.cause))

    def flush(self) -> None:
        """Archive every run that has ended, now."""
        self._when_idle.flush()

    async def _execute(self, run: AgentRun, order: RunOrder, policy: Policy) -> None:
        assignment = await self._admitted(run, order, policy)
        del order
        if assignment is None:
            return
        agent = Agent(
            *(assignment, self._models, self._tools, self._upstreams, run.ledger, run.emit),
            on_limit=partial(self._on_limit, run.context.tenant_id),
        )
        run.begin(agent, assignment.model)
        run.ledger.leave(Phase.ADMISSION)
        try:
            async with narrowed_at(run.due_at, "run"):
                answer = await agent.run()
            # A model may ask for tools although it is offered none, and write no text. Then the
            # results of its earlier calls are the answer.
            is_partial = agent.cut_short or not answer
            answer = answer or partial_answer(agent, "The model ended without an answer")
            run.finish(Outcome.COMPLETED, None, "", answer, is_partial)
        except DeadlineSpent:  # of the run or of its current step: the client knows only the run's
            detail = f"the {run.grant.due:.3f} s that the run may use are spent"
            run.finish(Outcome.DEADLINE_SPENT, Cause.DEADLINE_SPENT, detail, partial_answer(agent), True)
        except (DeadlineSpentUpstream, Doomed) as spent:  # too little time is left for anything
            run.finish(Outcome.DEADLINE_SPENT, spent.cause, str(spent), partial_answer(agent), True)
        except MeshError as failed:
            cause = failed.cause if isinstance(failed, Stopped) else Cause.UPSTREAM_FAILED
            run.finish(Outcome.FAILED, cause, str(failed), partial_answer(agent), True)
        except asyncio.CancelledError:
            scope = current_scope()
            cause = Cause.CLIENT_CANCELLED if scope is None or scope.cause is None else scope.cause
            detail = f"{_DETAILS[cause]}: {run.limit}" if run.limit else _DETAILS[cause]
            run.finish(_OUTCOMES[cause], cause, detail, partial_answer(agent), True)
            raise
        except Exception:
            detail = "the orchestrator failed; its log says why"
            run.finish(Outcome.FAILED, Cause.INTERNAL, detail, partial_answer(agent), True)
            raise

    async def _admitted(self, run: AgentRun, order: RunOrder, policy: Policy) -> Assignment | None:
        """The assignment of a run that has a slot; None if the run ends here."""
        try:
            # An answer or a refusal sent at the call's own deadline arrives too late.
            async with narrowed_at(run.due_at, "admission"):
                await run.take_place(self._slots)
                return await self._planned(run, order, policy)
        except MeshError as error:
            if _ran_out(run, error):
                detail = f"the {run.grant.due:.3f} s that the run may use were spent before it could begin"
                run.finish(Outcome.DEADLINE_SPENT, Cause.DEADLINE_SPENT, detail, NO_ANSWER, True)
            else:
                self._refuse(run, error)
        except Exception:
            self._refuse(
                run, InternalFailure("the orchestrator could not prepare this run; its log says why", hop=ORCHESTRATOR)
            )
            raise
        return None

    async def _planned(self, run: AgentRun, order: RunOrder, policy: Policy) -> Assignment:
        tenant = run.grant.tenant
        model_of(order, tenant)  # refuses a wrong model before the tools are listed
        retries = tenant.tier_policy.tool_retries
        listed = await self._catalog.listed(retries, partial(run.ledger.phase, Phase.RETRY_BACKOFF))
        return assignment_of(order, tenant, policy, listed)

    def _refuse(self, run: AgentRun, error: MeshError) -> None:
        self._store.release(run)
        run.refuse(error)

    def _over(self, run: AgentRun, cause: Cause | None) -> None:
        run.leave_place()
        if not run.over:  # the run was stopped before it began
            cause = cause or Cause.CLIENT_CANCELLED
            run.finish(_OUTCOMES[cause], cause, _DETAILS[cause], "", True)
        self._when_idle(self._archive, run)

    def _archive(self, run: AgentRun) -> None:
        run.archive()
        if run.finished is not None:
            self._store.finish(run)
            self._telemetry.record(_ended(run, run.finished))


def _ended(run: AgentRun, finished: RunFinished) -> RunEnded:
    context = run.context
    return RunEnded(
        hop=ORCHESTRATOR,
        tenant_id=context.tenant_id,
        tier=context.tier,
        run_id=run.run_id,
        started_at=context.started_at,
        due_at=run.due_at,
        ended_at=run.ended_at,
        outcome=finished.outcome,
        cause=finished.cause or "",
        phases={str(phase): seconds for phase, seconds in finished.phases.items()},
        unattributed=finished.unattributed,
    )


def _ran_out(run: AgentRun, error: MeshError) -> bool:
    """True if `error`, of this hop or one below, means that the run's own time is spent.

    After the due instant this holds for every refusal.
    """
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
