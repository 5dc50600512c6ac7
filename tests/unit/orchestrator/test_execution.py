"""A run from its admission to its outcome."""

from __future__ import annotations

import pytest
from tests.support.agent_world import QUICK, Models, Script, Tools
from tests.support.virtual import in_virtual_time, with_seconds

from deadlinemesh.admission import Bulkhead
from deadlinemesh.deadline import Scopes, entered
from deadlinemesh.deadline.background import Background
from deadlinemesh.identity.callers import Tenant
from deadlinemesh.identity.grants import Grant
from deadlinemesh.orchestrator.events import RunFinished
from deadlinemesh.orchestrator.execution import Executor
from deadlinemesh.orchestrator.planning import RunOrder
from deadlinemesh.orchestrator.run import AgentRun
from deadlinemesh.orchestrator.store import MemoryRunStore
from deadlinemesh.policy import default_policy
from deadlinemesh.telemetry import Telemetry
from deadlinemesh.testing import virtual_time
from deadlinemesh.vocabulary import FinishReason, TextDelta, TurnFinished, TurnStarted

POLICY = default_policy()
ACME = Tenant.of(POLICY, "acme")


async def finished(reason: FinishReason, text: str) -> RunFinished:
    """The end of a run whose model says `text` and stops for `reason`."""
    script: Script = [TurnStarted(), *([TextDelta(text)] if text else []), TurnFinished(reason, 1, 1)]
    slots = Bulkhead("runs", 1, clock=virtual_time.clock())
    store = MemoryRunStore(POLICY.limits)
    models = Models(**{ACME.models[0]: [script]})
    executor = Executor(Background(Scopes("orchestrator")), slots, models, Tools(QUICK), store, Telemetry([]))
    context = with_seconds(10.0)
    run = AgentRun(context, Grant(ACME, granted=10.0, due=9.9, requested=10.0), "once", 1)
    store.claim(run)
    with entered(context):
        executor.start(run, RunOrder("go"), POLICY)
        await run.ended()
    assert run.finished is not None
    return run.finished


@pytest.mark.parametrize(
    ("reason", "text", "partial"),
    [
        (FinishReason.STOP, "whole", False),
        (FinishReason.LENGTH, "cut by the tok", True),
        (FinishReason.CONTENT_FILTER, "withheld", True),
        (FinishReason.STOP, "", True),
    ],
)
@in_virtual_time
async def test_answer_is_partial_if_cut_withheld_or_empty(reason: FinishReason, text: str, partial: bool) -> None:
    end = await finished(reason, text)
    assert end.partial is partial
    assert text in end.answer
    assert end.answer
