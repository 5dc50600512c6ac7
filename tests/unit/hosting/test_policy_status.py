"""`dmesh policy status`: which policy each process has in force, and why another was refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deadlinemesh.cli.app import app
from deadlinemesh.hosting import policy_status
from deadlinemesh.policy import PolicyStatus

GOOD = PolicyStatus("0123456789ab", 1_700_000_000.0)
BAD = PolicyStatus("0123456789ab", 1_700_000_000.0, "ba9876543210", 1_700_000_100.0, "p.yaml:3: tiers: is missing")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "status"
    monkeypatch.setenv("DMESH_POLICY_STATUS_FILE", str(path))
    return path


@pytest.mark.parametrize(("status", "code"), [(GOOD, 0), (BAD, 1)])
def test_a_service_tells_what_is_in_force(file: Path, status: PolicyStatus, code: int) -> None:
    policy_status.write(file, "orchestrator", status)
    assert file.stat().st_mode & 0o777 == 0o600
    done = CliRunner().invoke(app, ["policy", "status", "--json"])
    assert done.exit_code == code
    (told,) = json.loads(done.stdout)["processes"]
    assert (told["process"], told["pid"], told["lives"]) == ("orchestrator", os.getpid(), True)
    assert (told["digest"], told["refused"], told["why"]) == (status.digest, status.refused, status.why)
    text = CliRunner().invoke(app, ["policy", "status", "--file", str(file)]).stdout
    assert "0123456789ab" in text
    assert ("refused ba9876543210" in text) == (status.why != "")


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"name": 1}'])
def test_what_is_no_status_is_told(file: Path, content: str | None) -> None:
    if content is not None:
        file.write_text(content)
    done = CliRunner().invoke(app, ["policy", "status"])
    assert done.exit_code == 2
    assert "start `dmesh up`, or set DMESH_POLICY_STATUS_FILE" in done.stderr


def test_a_status_that_cannot_be_written_costs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    policy_status.write(tmp_path / "nowhere" / "status", "edge", GOOD)
    assert "cannot be written" in caplog.text
