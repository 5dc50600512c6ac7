"""Exit codes, JSON and errors as people read them."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from deadlinemesh.demo.play import inside_budget
from deadlinemesh.errors import (
    ClientCancelled,
    DeadlineSpentUpstream,
    Doomed,
    Draining,
    InternalFailure,
    InvalidRequest,
    MeshError,
    NotFound,
    Shed,
    Unauthenticated,
    UpstreamFailed,
    Violation,
)
from deadlinemesh.v1 import common_pb2, llm_proxy_pb2, orchestrator_pb2
from deadlinemesh.views.live import LiveView, PlainView
from deadlinemesh.views.output import Exit, error_json, exit_of_error, exit_of_run, explain, run_json
from deadlinemesh.views.run import print_finished
from deadlinemesh.views.waterfall import Timeline


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        ("COMPLETED", Exit.ANSWERED),
        ("DEADLINE_SPENT", Exit.ANSWERED),
        ("FAILED", Exit.FAILED),
        ("CANCELLED", Exit.CANCELLED),
        ("UNSPECIFIED", Exit.FAILED),
    ],
)
def test_the_exit_code_says_how_the_run_ended(outcome: str, code: Exit) -> None:
    assert exit_of_run(orchestrator_pb2.RunFinished(outcome=f"OUTCOME_{outcome}")) is code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Unauthenticated("no key"), 3),
        (InvalidRequest([Violation("prompt", "must not be empty")]), 3),
        (NotFound([Violation("model", "one of demo")]), 3),
        (UpstreamFailed("connection refused"), 4),
        (Draining("shutting down"), 4),
        (Shed("too much"), 4),
        (Doomed("too short"), 1),
        (DeadlineSpentUpstream("late"), 1),
        (InternalFailure("a defect"), 1),
        (ClientCancelled("gone"), 1),
    ],
)
def test_the_exit_code_says_why_there_was_no_run(error: MeshError, code: int) -> None:
    assert exit_of_error(error) == code


def test_an_error_names_each_field_and_when_to_try_again() -> None:
    assert explain(NotFound([Violation("model", "one of demo"), Violation("tools[0]", "one of calculate")])) == [
        "NOT_FOUND: the request was refused",
        "  model: one of demo",
        "  tools[0]: one of calculate",
    ]
    assert explain(Shed("too much", retry_after=2.5)) == ["SHED: too much", "  try again in 2.5 s"]


def test_an_error_as_json_has_its_violations() -> None:
    told = error_json(NotFound([Violation("model", "one of demo")], hop="orchestrator"))["error"]
    assert told["reason"] == "NOT_FOUND"
    assert told["violations"] == [{"field": "model", "description": "one of demo"}]
    assert (told["hop"], told["retry_after_s"]) == ("orchestrator", None)


def ended(
    outcome: str = "DEADLINE_SPENT", answer: str = "so far [bold]42[/bold]", elapsed_us: int = 1_900_000
) -> Timeline:
    timeline = Timeline()
    grant = orchestrator_pb2.Grant(
        tenant_id="acme", tier="enterprise", granted_us=2_000_000, reserve_us=60_000, max_iterations=10
    )
    for event in (
        orchestrator_pb2.RunResponse(
            elapsed_us=200, started=orchestrator_pb2.RunStarted(run_id="run_1", model="demo", grant=grant)
        ),
        orchestrator_pb2.RunResponse(elapsed_us=500, text=llm_proxy_pb2.TextDelta(text="so far")),
        orchestrator_pb2.RunResponse(
            elapsed_us=600,
            tool_call_started=orchestrator_pb2.ToolCallStarted(
                call=common_pb2.ToolCall(id="c", name="long_task", arguments_json='{"seconds": 20}'),
                remaining_us=1_300_000,
            ),
        ),
        orchestrator_pb2.RunResponse(
            elapsed_us=900_000,
            tool_call_progress=orchestrator_pb2.ToolCallProgress(call_id="c", message="step 1 of 2", fraction=0.5),
        ),
        orchestrator_pb2.RunResponse(
            elapsed_us=elapsed_us,
            tool_call_finished=orchestrator_pb2.ToolCallFinished(
                call_id="c", name="long_task", status=common_pb2.TOOL_STATUS_CUT, elapsed_us=1_200_000
            ),
        ),
        orchestrator_pb2.RunResponse(
            elapsed_us=elapsed_us,
            finished=orchestrator_pb2.RunFinished(
                outcome=f"OUTCOME_{outcome}",
                cause=common_pb2.CAUSE_DEADLINE_SPENT,
                detail="the time is spent",
                answer=answer,
                partial=True,
                ledger=common_pb2.Ledger(
                    granted_us=2_000_000,
                    elapsed_us=elapsed_us,
                    phases=[common_pb2.PhaseSpend(phase=common_pb2.PHASE_ADMISSION, spent_us=elapsed_us - 1000)],
                    unattributed_us=1000,
                ),
                usage=common_pb2.Usage(model_calls=1, tool_calls=1),
            ),
        ),
    ):
        timeline.add(event)
        EVENTS.append(event)
    return timeline


EVENTS: list[orchestrator_pb2.RunResponse] = []


def test_a_run_as_json_is_complete() -> None:
    told = json.loads(json.dumps(run_json(ended())))
    assert {
        "tenant": "acme",
        "tier": "enterprise",
        "granted_ms": 2000.0,
        "elapsed_ms": 1900.0,
        "outcome": "DEADLINE_SPENT",
        "cause": "DEADLINE_SPENT",
        "partial": True,
        "ledger": {"admission": 1899.0, "unattributed": 1.0},
        "usage": {"input_tokens": 0, "output_tokens": 0, "model_calls": 1, "tool_calls": 1},
    }.items() <= told.items()
    tools = [one for one in told["waterfall"] if one["kind"] == "tool"]
    assert [(one["label"], one["status"]) for one in tools] == [("long_task", "CUT")]


def test_a_run_that_was_not_stopped_has_no_cause() -> None:
    timeline = ended()
    assert timeline.finished is not None
    timeline.finished.cause = common_pb2.CAUSE_UNSPECIFIED
    assert run_json(timeline)["cause"] is None


def test_what_the_mesh_says_is_never_read_as_markup() -> None:
    console = Console(file=io.StringIO(), width=80)
    print_finished(ended(), console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "so far [bold]42[/bold]" in shown
    assert "PARTIAL answer" in shown
    assert "DEADLINE_SPENT: the time is spent" in shown
    assert "1 model call, 1 tool call" in shown
    assert "\x1b" not in shown


def test_a_file_gets_one_line_for_each_event(capsys: pytest.CaptureFixture[str]) -> None:
    EVENTS.clear()
    timeline = ended()
    with PlainView() as view:
        for event in EVENTS:
            view.show(event, timeline)
    assert capsys.readouterr().out.splitlines() == [
        "[      0.2 ms] run run_1: enterprise tier, 2.0 s granted, model demo",
        "so far",
        '[      0.6 ms] tool long_task {"seconds": 20}, 1.3 s left',
        "[    900.0 ms] tool long_task 50% step 1 of 2",
        "[   1900.0 ms] tool long_task CUT after 1200.0 ms",
    ]


def test_a_terminal_gets_the_phase_the_budget_the_tools_and_the_text() -> None:
    EVENTS.clear()
    ended()
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    timeline = Timeline()
    with LiveView(console) as view:
        for event in EVENTS[:4]:
            timeline.add(event)
            view.show(event, timeline)
        console.print(view._render())
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("acme", "run_1", "s left", "of 2.0 s", "admission", "long_task", "step 1 of 2", "so far"):
        assert part in shown


def test_a_run_holds_only_with_an_answer_inside_its_budget() -> None:
    assert inside_budget(ended("COMPLETED"))
    assert inside_budget(ended("DEADLINE_SPENT"))
    assert not inside_budget(ended("FAILED"))
    assert not inside_budget(ended(answer=""))
    assert not inside_budget(ended(elapsed_us=2_000_001))
    assert not inside_budget(Timeline())
    assert not inside_budget(UpstreamFailed("gone"))
