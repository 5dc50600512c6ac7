"""Output of commands: exit codes, JSON, and errors in a form for people."""

from __future__ import annotations

import sys
from enum import IntEnum
from typing import Any

from deadlinemesh.errors import Draining, InvalidRequest, MeshError, Shed, Unauthenticated, UpstreamFailed
from deadlinemesh.v1 import common_pb2, orchestrator_pb2
from deadlinemesh.views.waterfall import Timeline, phase_name

__all__ = [
    "EXIT_CODES",
    "Exit",
    "complain",
    "error_json",
    "exit_of_error",
    "exit_of_run",
    "ledger_ms",
    "run_json",
]


class Exit(IntEnum):
    """The exit codes of `dmesh`. EXIT_CODES explains them."""

    ANSWERED = 0
    FAILED = 1
    USAGE = 2
    REFUSED = 3
    UNAVAILABLE = 4
    CANCELLED = 130


EXIT_CODES = (
    "Exit codes: 0 answered, be it in part because the time was spent; 1 the run failed; 2 wrong usage or policy; "
    "3 unauthenticated or an invalid request; 4 the mesh is unavailable; 130 cancelled."
)

_OUTCOMES = {
    orchestrator_pb2.OUTCOME_COMPLETED: Exit.ANSWERED,
    orchestrator_pb2.OUTCOME_DEADLINE_SPENT: Exit.ANSWERED,
    orchestrator_pb2.OUTCOME_CANCELLED: Exit.CANCELLED,
}


def exit_of_run(finished: orchestrator_pb2.RunFinished) -> Exit:
    """The exit code for the outcome of a run."""
    return _OUTCOMES.get(finished.outcome, Exit.FAILED)


def exit_of_error(error: MeshError) -> Exit:
    """The exit code for a call that produced no run."""
    if isinstance(error, (InvalidRequest, Unauthenticated)):
        return Exit.REFUSED
    return Exit.UNAVAILABLE if isinstance(error, (UpstreamFailed, Draining, Shed)) else Exit.FAILED


def complain(*problems: str) -> None:
    """Print one line for each problem on standard error."""
    for problem in problems:
        print(f"dmesh: {problem}", file=sys.stderr)


def explain(error: MeshError) -> list[str]:
    """Format an error as lines: the reason, then one line for each violation."""
    lines = [f"{error.reason}: {error}"]
    if isinstance(error, InvalidRequest) and error.violations:
        lines = [f"{error.reason}: the request was refused"]
        lines += [f"  {violation.field}: {violation.description}" for violation in error.violations]
    retry_after = getattr(error, "retry_after", None)
    if retry_after is not None:
        lines.append(f"  try again in {retry_after:.1f} s")
    return lines


def error_json(error: MeshError) -> dict[str, Any]:
    """An error as JSON."""
    violations = error.violations if isinstance(error, InvalidRequest) else ()
    return {
        "error": {
            "reason": error.reason,
            "message": str(error),
            "hop": error.hop,
            "violations": [{"field": one.field, "description": one.description} for one in violations],
            "retry_after_s": getattr(error, "retry_after", None),
        }
    }


def ledger_ms(ledger: common_pb2.Ledger) -> dict[str, float]:
    """Milliseconds by phase, and those that no phase explains."""
    spent = {phase_name(one.phase): round(one.spent_us / 1e3, 3) for one in ledger.phases}
    return {**spent, "unattributed": round(ledger.unattributed_us / 1e3, 3)}


def run_json(timeline: Timeline) -> dict[str, Any]:
    """A finished run as JSON."""
    started, finished = timeline.started or orchestrator_pb2.RunStarted(), timeline.finished
    assert finished is not None
    ledger, usage, grant = finished.ledger, finished.usage, started.grant
    return {
        "run_id": started.run_id,
        "request_id": started.request_id,
        "trace_id": started.trace_id,
        "attached": started.attached,
        "tenant": grant.tenant_id,
        "tier": grant.tier,
        "model": started.model,
        "granted_ms": round(ledger.granted_us / 1e3, 3),
        "reserve_ms": round(grant.reserve_us / 1e3, 3),
        "elapsed_ms": round(ledger.elapsed_us / 1e3, 3),
        "outcome": orchestrator_pb2.Outcome.Name(finished.outcome).removeprefix("OUTCOME_"),
        "cause": _cause(finished.cause),
        "detail": finished.detail,
        "partial": finished.partial,
        "answer": finished.answer,
        "iterations": finished.iterations,
        "ledger": ledger_ms(ledger),
        "waterfall": [
            {
                "label": row.label,
                "kind": row.kind,
                "start_ms": round(row.start * 1e3, 3),
                "ms": round(row.duration * 1e3, 3),
                **({"status": row.note.upper() or "OK"} if row.kind == "tool" else {}),
            }
            for row in timeline.rows()
        ],
        "usage": {
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "model_calls": usage.model_calls,
            "tool_calls": usage.tool_calls,
        },
    }


def _cause(cause: common_pb2.Cause) -> str | None:
    """The cause without its prefix; None if the run was not stopped."""
    return None if not cause else common_pb2.Cause.Name(cause).removeprefix("CAUSE_")
