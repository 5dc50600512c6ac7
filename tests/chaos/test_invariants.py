"""Each invariant can fail: what is in order breaks none, and one false fact in it breaks the one that forbids it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from tests.chaos.invariants import GONE, INVARIANTS, REPORTED, SOON
from tests.chaos.mesh import HIT, ROOM, TENANTS
from tests.chaos.provider import Exchange, word
from tests.support.seen import Heard, Seen

from deadlinemesh.policy import default_policy
from deadlinemesh.telemetry import CallEnded, CallStarted, OrphanReported, Retried, RunEnded
from deadlinemesh.v1 import common_pb2, orchestrator_pb2
from deadlinemesh.vocabulary import Message, Role, ToolCall

RUN = "run_1"


def _scene() -> Any:
    """One run that used its time up, a tool of which would not end, and as many probes as there is room for."""
    life = SimpleNamespace(service="tool-runner", killed_at=None, thawed_at=lambda instant: instant)
    edge = SimpleNamespace(service="orchestrator", killed_at=None, thawed_at=lambda instant: instant)
    tool, run = "/deadlinemesh.v1.ToolRunnerService/CallTool", "/deadlinemesh.v1.OrchestratorService/Run"
    finished = orchestrator_pb2.RunFinished(
        outcome=orchestrator_pb2.OUTCOME_DEADLINE_SPENT,
        answer=word(1),
        partial=True,
        ledger=common_pb2.Ledger(
            granted_us=1_000_000,
            elapsed_us=900_000,
            phases=[common_pb2.PhaseSpend(phase=common_pb2.PHASE_TOOL_CALL, spent_us=895_000)],
            unattributed_us=5_000,
        ),
        usage=common_pb2.Usage(tool_calls=1, model_calls=1, output_tokens=1),
    )
    grant = orchestrator_pb2.Grant(tenant_id=HIT, tier=TENANTS[HIT])
    heard = (
        Heard(10.0, orchestrator_pb2.RunResponse(started=orchestrator_pb2.RunStarted(run_id=RUN, grant=grant))),
        Heard(10.9, orchestrator_pb2.RunResponse(elapsed_us=900_000, finished=finished)),
    )
    seen = Seen(1, False, False, 10.0, 11.0, None, heard, 10.9, "OK", "")
    one = SimpleNamespace(
        number=1, run_id=RUN, tenant=HIT, probe=False, seen=seen, heard=heard, left_at=None, pids={4_000_000}
    )
    completed = orchestrator_pb2.RunFinished(outcome=orchestrator_pb2.OUTCOME_COMPLETED)
    answer = (Heard(20.1, orchestrator_pb2.RunResponse(finished=completed)),)
    probes = [
        SimpleNamespace(
            number=number,
            run_id="",
            tenant=HIT,
            probe=True,
            heard=answer,
            left_at=None,
            pids=(),
            seen=Seen(number, False, True, 20.0, None, None, answer, 20.1, "OK", ""),
        )
        for number in range(2, 2 + ROOM)
    ]
    history = (
        *(Message(Role.USER, "hello"), Message(Role.ASSISTANT, word(1), (ToolCall("c", "wait", "{}"),))),
        Message(Role.TOOL, word(1), (), "c"),
    )
    return SimpleNamespace(
        mesh=SimpleNamespace(
            noise=SimpleNamespace(within=lambda since, until: 0.0),
            policy=SimpleNamespace(tiers={"gold": default_policy().tiers["enterprise"]}),
        ),
        hit={HIT},
        unreachable=set(),
        dirty=set(),
        leftovers=[],
        log={"orchestrator": ""},
        seconds=1.0,
        died={4_000_000: 10.95},
        runs=[one, *probes],
        histories=[(one, history)],
        events=[
            (edge, CallStarted("orchestrator", run, RUN, 10.0, 11.0)),
            (life, CallStarted("tool-runner", tool, RUN, 10.1, 10.9)),
            (life, OrphanReported("tool-runner", HIT, RUN, "tool", 0.25)),
            (
                life,
                CallEnded(
                    "tool-runner", tool, HIT, "gold", RUN, 10.1, 10.9, 11.15, "DEADLINE_EXCEEDED", "DEADLINE_SPENT"
                ),
            ),
            (
                edge,
                RunEnded(
                    "orchestrator", HIT, "gold", RUN, 10.0, 10.9, 10.9, "deadline_spent", "DEADLINE_SPENT", {}, 0.0
                ),
            ),
            (edge, CallEnded("orchestrator", run, HIT, "gold", RUN, 10.0, 11.0, 10.9, "OK", "")),
        ],
        exchanges=[
            Exchange("model", 1, 0, 10.05, words=1, ended_at=10.1),
            Exchange("tool", 1, 0, 10.1, told=10.9, ended_at=10.9),
            *(Exchange(kind, probe.number, 0, 20.0, ended_at=20.1) for probe in probes for kind in ("model", "tool")),
        ],
    )


def _broken(scene: Any) -> list[str]:
    return [invariant.__name__ for invariant in INVARIANTS if list(invariant(scene))]


def test_what_is_in_order_breaks_no_invariant() -> None:
    assert _broken(_scene()) == []


def _event(kind: type, index: int = 0, **changes: Any) -> Callable[[Any], object]:
    def change(scene: Any) -> None:
        places = [place for place, (_, event) in enumerate(scene.events) if isinstance(event, kind)]
        life, event = scene.events[places[index]]
        scene.events[places[index]] = (life, replace(event, **changes))

    return change


def _seen(**changes: Any) -> Callable[[Any], object]:
    def change(scene: Any) -> None:
        scene.runs[0].seen = replace(scene.runs[0].seen, **changes)

    return change


def _finished(change: Callable[[Any], object]) -> Callable[[Any], object]:
    return lambda scene: change(scene.runs[0].heard[-1].response.finished)


def _retried(number: int) -> Callable[[Any], object]:
    return lambda scene: scene.events.append(
        (scene.events[0][0], Retried("orchestrator", HIT, RUN, "tool wait", number, "SHED", 0.0))
    )


FALSE: dict[str, list[Callable[[Any], object]]] = {
    "no_work_is_done_after_a_deadline": [
        _event(CallStarted, 1, started_at=10.91),
        _event(CallEnded, 0, ended_at=10.9 + REPORTED + 0.01),
        lambda scene: scene.events.pop(2),  # nobody reported it
        _event(RunEnded, ended_at=10.9 + SOON + 0.01),
        lambda scene: scene.died.update({4_000_000: 10.9 + GONE + 0.01}),
        lambda scene: setattr(scene.exchanges[1], "ended_at", 10.9 + SOON + 0.01),
    ],
    "no_deadline_is_later_than_its_parents": [
        _event(CallStarted, 1, deadline_at=11.1),
        lambda scene: setattr(scene.exchanges[1], "told", 11.1),
    ],
    "nothing_is_charged_to_the_wrong_tenant": [
        _event(CallEnded, 0, tenant_id="bolt"),
        _finished(lambda told: setattr(told, "answer", word(2))),
        _finished(lambda told: setattr(told.usage, "output_tokens", 2)),
        lambda scene: scene.histories.append((scene.runs[0], (Message(Role.USER, word(2)),))),
    ],
    "every_client_is_answered_before_its_own_timer": [
        _seen(ended_at=None),
        _seen(ended_at=11.0),
        _seen(ended_at=11.1),
        _seen(heard=(), code="UNAVAILABLE"),
        _finished(lambda told: setattr(told, "answer", "")),
    ],
    "who_is_spared_notices_nothing": [lambda scene: scene.hit.clear()],
    "every_run_ends_for_the_reason_it_had": [
        _event(CallEnded, 0, cause="INTERNAL"),
        _event(RunEnded, outcome="cancelled"),
        _event(RunEnded, ended_at=10.8),
        lambda scene: scene.log.update(orchestrator="12:00 ERROR   asyncio Task exception was never retrieved"),
    ],
    "the_ledger_sums_to_the_elapsed_time": [
        _finished(lambda told: setattr(told.ledger, "unattributed_us", 6_000)),
        _finished(lambda told: setattr(told.ledger, "granted_us", 800_000)),
    ],
    "retries_keep_within_the_tier_and_the_budget": [
        _retried(3),
        lambda scene: [_retried(1)(scene) for _ in range(20)],
        _finished(lambda told: setattr(told.usage, "tool_calls", 0)),
    ],
    "the_work_of_a_client_that_left_stops": [lambda scene: setattr(scene.runs[0], "left_at", 10.2)],
    "slots_and_registries_are_empty_at_the_end": [
        lambda scene: scene.leftovers.append("something"),
        lambda scene: scene.events.pop(),
        lambda scene: scene.events.append(scene.events[4]),
        lambda scene: scene.exchanges.pop(),
        lambda scene: scene.runs[0].pids.add(1),
    ],
    "history_is_always_valid": [
        lambda scene: scene.histories.append((scene.runs[0], scene.histories[0][1][:2])),
        lambda scene: setattr(scene.exchanges[0], "invalid", ("messages[1]: wrong",)),
    ],
}


@pytest.mark.parametrize(
    ("invariant", "falsify"), [(name, falsify) for name, changes in FALSE.items() for falsify in changes]
)
def test_one_false_fact_breaks_the_invariant_that_forbids_it(invariant: str, falsify: Callable[[Any], Any]) -> None:
    scene = _scene()
    falsify(scene)
    assert invariant in _broken(scene)


def test_every_invariant_is_seen_to_fail() -> None:
    assert set(FALSE) == {invariant.__name__ for invariant in INVARIANTS}


def test_a_status_that_nobody_was_there_to_read_is_only_noise() -> None:
    scene = _scene()
    scene.log["llm-proxy"] = (
        "2026-11-25 19:27:02,180 WARNING deadlinemesh orphan at llm-proxy\n"
        "2026-11-25 19:27:02,183 ERROR   grpc._cython.cygrpc ExecuteBatchError raised in core by servicer method [/x]\n"
        'Traceback (most recent call last):\n  File "server.pyx.pxi", line 710, in _handle_exceptions\n'
        'grpc._cython.cygrpc.ExecuteBatchError: Failed "execute_batch": (<SendStatusFromServerOperation object>,)\n'
    )
    assert _broken(scene) == []
    scene.log["llm-proxy"] += "2026-11-25 19:27:02,190 ERROR   deadlinemesh.transport failed\n"
    assert "every_run_ends_for_the_reason_it_had" in _broken(scene)
