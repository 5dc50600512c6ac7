"""The README's grpcurl lines, by the real grpcurl."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from .contract import LONG_TASK, Mesh, require

ORCHESTRATOR = "deadlinemesh.v1.OrchestratorService"


def grpcurl(mesh: Mesh, *arguments: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    require("grpcurl")
    return subprocess.run(
        ["grpcurl", "-plaintext", *options, mesh.address, *arguments], capture_output=True, text=True, timeout=60
    )


def run(mesh: Mesh, prompt: str, *options: str) -> list[dict[str, Any]]:
    """The events of a run."""
    credentials = ("-H", f"authorization: Bearer {mesh.api_key('professional')}")
    done = grpcurl(mesh, f"{ORCHESTRATOR}/Run", options=(*options, *credentials, "-d", json.dumps({"prompt": prompt})))
    assert done.returncode == 0, done.stderr
    decoder, events, text = json.JSONDecoder(), [], done.stdout.strip()
    while text:
        event, end = decoder.raw_decode(text)
        events.append(event)
        text = text[end:].lstrip()
    return events


def test_reflection_lists_the_service(mesh: Mesh) -> None:
    done = grpcurl(mesh, "list")
    assert ORCHESTRATOR in done.stdout.split()


def test_reflection_describes_the_service(mesh: Mesh) -> None:
    done = grpcurl(mesh, "describe", ORCHESTRATOR)
    assert "rpc Run ( .deadlinemesh.v1.RunRequest ) returns ( stream .deadlinemesh.v1.RunResponse );" in done.stdout


def test_a_run_is_answered_with_a_ledger(mesh: Mesh) -> None:
    finished = run(mesh, "What is (17+25)*3?", "-max-time", "5")[-1]["finished"]
    assert finished["outcome"] == "OUTCOME_COMPLETED"
    assert "126" in finished["answer"]
    assert finished["ledger"]["phases"]


def test_a_run_whose_time_is_spent_is_still_answered_in_time(mesh: Mesh) -> None:
    finished = run(mesh, LONG_TASK, "-max-time", "2")[-1]["finished"]
    assert finished["outcome"] == "OUTCOME_DEADLINE_SPENT"
    assert finished["partial"] is True
    assert int(finished["ledger"]["elapsed_us"]) <= 2_000_000


def test_the_health_check_answers_without_credentials(mesh: Mesh) -> None:
    done = grpcurl(mesh, "grpc.health.v1.Health/Check", options=("-d", json.dumps({"service": ORCHESTRATOR})))
    assert '"status": "SERVING"' in done.stdout
