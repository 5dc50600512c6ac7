"""`dmesh demo`, as whoever tries the mesh for the first time runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.up import dmesh

pytestmark = pytest.mark.processes


def test_three_tenants_are_each_answered_inside_their_own_budget(tmp_path: Path) -> None:
    done = dmesh(tmp_path / "up.json", "demo", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["holds"] is True
    runs = told["runs"]
    assert [(run["tenant"], run["tier"]) for run in runs] == [
        ("acme", "enterprise"),
        ("bolt", "professional"),
        ("cora", "free"),
    ]
    tools = [{one["label"] for one in run["waterfall"] if one["kind"] == "tool"} for run in runs]
    assert tools == [{"crm_lookup", "vector_search", "calculate"}, {"market_data"}, {"portfolio_report"}]
    for run in runs:
        assert run["elapsed_ms"] <= run["granted_ms"]
        assert sum(run["ledger"].values()) == pytest.approx(run["elapsed_ms"], abs=0.1)
    # The slow provider held its own tenant only.
    assert max(runs, key=lambda run: run["elapsed_ms"])["tenant"] == "bolt"
    assert not (tmp_path / "up.json").exists()
