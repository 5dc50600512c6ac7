"""What the example of every client must do, whatever its language."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Protocol

import pytest

CLIENTS = Path(__file__).resolve().parents[2] / "clients"
LONG_TASK = "Run the long task for 20 seconds"
# Hang guards, in seconds, far beyond what a run here is granted. No test waits them out unless something is broken.
RUN_GUARD = 60
CANCEL_GUARD = 5


class Mesh(Protocol):
    """What these tests ask of the fixture `mesh`."""

    address: str

    def api_key(self, tier: str) -> str: ...


def require(*programs: str) -> None:
    """Skip the test where a toolchain is missing, except in CI, which must have them all."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        reason = f"not installed: {', '.join(missing)}"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)


def start(example: list[str], mesh: Mesh, *arguments: str, key: str | None = None) -> subprocess.Popen[str]:
    environment = os.environ | {"DMESH_ADDR": mesh.address, "DMESH_API_KEY": key or mesh.api_key("professional")}
    return subprocess.Popen(
        [*example, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(example: list[str], mesh: Mesh, *arguments: str, key: str | None = None) -> tuple[int, str, str]:
    """The exit code and what was printed on stdout and stderr."""
    with start(example, mesh, *arguments, key=key) as process:
        try:
            out, err = process.communicate(timeout=RUN_GUARD)
        finally:
            process.kill()
    return process.returncode, out, err


def answer(out: str, mark: str) -> str:
    found = re.search(rf"^--- {mark} ---\n(.*?)\n\noutcome ", out, re.MULTILINE | re.DOTALL)
    assert found, out
    return found[1]


def ledger(out: str) -> dict[str, float]:
    """The printed ledger, in milliseconds: every row that has a share."""
    return {name: float(ms) for name, ms in re.findall(r"^(\w+) +([\d.]+) +[\d.]+%$", out, re.MULTILINE)}


class ExampleContract:
    """Subclass it beside a fixture `example`: the command that starts the example, without arguments."""

    def test_a_run_prints_its_answer_and_a_ledger_that_adds_up(self, example: list[str], mesh: Mesh) -> None:
        code, out, err = run(example, mesh, "hello")
        assert (code, err) == (0, "")
        assert answer(out, "answer")
        assert "outcome  COMPLETED" in out
        rows = ledger(out)
        elapsed = rows.pop("elapsed")
        assert "unattributed" in rows
        # Each row is rounded to a tenth.
        assert sum(rows.values()) == pytest.approx(elapsed, abs=0.05 * (len(rows) + 1))

    def test_a_spent_deadline_gives_a_partial_answer_and_success(self, example: list[str], mesh: Mesh) -> None:
        code, out, err = run(example, mesh, "--deadline", "2s", LONG_TASK)
        assert (code, err) == (0, "")
        assert answer(out, "PARTIAL answer")
        assert "outcome  DEADLINE_SPENT" in out
        assert "DEADLINE_EXCEEDED" not in out
        assert ledger(out)["elapsed"] <= 2000

    def test_ctrl_c_cancels_a_run_promptly(self, example: list[str], mesh: Mesh) -> None:
        with start(example, mesh, LONG_TASK) as process:
            assert process.stdout
            assert process.stderr
            try:
                seen = []
                for line in process.stdout:
                    seen.append(line)
                    if "tool long_task" in line:
                        break
                else:
                    pytest.fail(f"no tool was called: {seen} {process.stderr.read()}")
                process.send_signal(signal.SIGINT)
                assert process.wait(timeout=CANCEL_GUARD) == 130
                assert "the run was cancelled" in process.stderr.read()
            finally:
                process.kill()

    def test_a_wrong_key_is_refused(self, example: list[str], mesh: Mesh) -> None:
        code, out, err = run(example, mesh, "hello", key="no-such-key")
        assert (code, out) == (1, "")
        assert "error: UNAUTHENTICATED: " in err

    def test_a_refused_field_is_named(self, example: list[str], mesh: Mesh) -> None:
        code, out, err = run(example, mesh, "--model", "no-such-model", "hello")
        assert (code, out) == (1, "")
        assert "error: NOT_FOUND: " in err
        assert "\n  model: " in err

    def test_a_deadline_that_is_none_is_wrong_usage(self, example: list[str], mesh: Mesh) -> None:
        code, out, err = run(example, mesh, "--deadline=-1s", "hello")
        assert (code, out) == (2, "")
        assert "--deadline" in err
        assert "500ms, 20s or 2m" in err
