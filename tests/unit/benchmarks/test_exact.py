"""The pure parts of `dmesh bench bench`: what counts as lost and as held back, and what a missing language means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks.exact import bench
from benchmarks.exact.clients import Ended, NotBuilt, built

SPENT = "OUTCOME_DEADLINE_SPENT"


def bars(*runs: Ended, skipped: dict[str, str] | None = None, stalls: tuple[float, ...] = ()) -> dict[str, Any]:
    """The bars by name for one client whose long runs ended so, on a machine that stalled at these instants."""
    ended = {False: [(deadline, run) for run in runs for deadline in bench.LONG_MS], True: []}
    figures = {"go": bench._figures(ended, {False: [], True: []}, stalls)}
    return {one["what"]: one for one in bench._bars(figures, ["go"], skipped or {}, len(runs))}


def test_a_run_without_an_answer_is_lost() -> None:
    told = bars(Ended(90.0, 80.0, SPENT, ""), Ended(0.0, 0.0, "", "Deadline Exceeded"))
    assert told["our clients: lost answers"]["measured"] == len(bench.LONG_MS)
    assert not told["our clients: lost answers"]["holds"]


def test_the_most_that_is_held_back_counts() -> None:
    told = bars(Ended(90.0, 80.0, SPENT, ""), Ended(100.1, 80.0, SPENT, ""))
    assert [one["measured"] for what, one in told.items() if "held back" in what] == [100.1, 100.1]
    assert not any(one["holds"] for what, one in told.items() if "held back" in what)


def test_a_length_without_any_answer_holds_nothing() -> None:
    told = bars(Ended(0.0, 0.0, "", "refused"))
    assert not any(one["holds"] for what, one in told.items() if "held back" in what)


def test_a_run_that_ends_early_proves_nothing() -> None:
    told = bars(Ended(90.0, 5000.0, "OUTCOME_COMPLETED", ""))
    assert not told["our clients: part of those that ended at their deadline"]["holds"]


def test_what_a_stall_disturbs_is_not_judged() -> None:
    answered = [
        Ended(90.0, 80.0, SPENT, "", began_at=10.0 * number, ended_at=10.0 * number + 5.0) for number in range(20)
    ]
    lost = Ended(130.0, 0.0, "", "Deadline Exceeded", began_at=200.0, ended_at=205.0)
    told = bars(*answered, lost, stalls=(200.1, 204.9))
    assert all(one["holds"] for one in told.values())
    told = bars(*answered, lost, stalls=(202.0,))
    assert not told["our clients: lost answers"]["holds"]
    told = bars(answered[0], lost, stalls=(4.9, 204.9))
    assert not told["our clients: runs that no stall of the machine disturbed"]["holds"]


@pytest.mark.parametrize("ci", ["true", ""])
def test_a_skipped_language_fails_in_ci_alone(ci: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", ci)
    told = bars(Ended(90.0, 80.0, SPENT, ""), skipped={"node": "not installed: npm"})
    assert all(one["holds"] for one in told.values()) is (ci != "true")


async def test_a_missing_toolchain_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotBuilt, match="not installed: go"):
        await built("go", tmp_path)
