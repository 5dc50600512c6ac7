"""`dmesh demo`, as whoever tries the mesh for the first time runs it."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tests.support.up import dmesh

pytestmark = [pytest.mark.processes, pytest.mark.long]


def test_bs_slow_provider_eats_others_budgets_the_naive_way_and_only_its_own_through_the_mesh(tmp_path: Path) -> None:
    picture = tmp_path / "incident.svg"
    done = dmesh(tmp_path / "up.json", "demo", "--json", "--save", str(picture))
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)

    # Through the mesh each tenant is answered in its time.
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
    assert [run["partial"] for run in runs] == [False, True, False]
    assert max(runs, key=lambda run: run["elapsed_ms"])["tenant"] == "bolt"
    assert told["meshed"]["open_requests_after_deadlines"] == 0

    # The naive way A and C get nothing, as B holds what they wait for, and what B's users no longer wait for goes on.
    naive = told["naive"]["runs"]
    for tenant in ("acme", "cora"):
        starved = next(run for run in naive if run["tenant"] == tenant)
        assert starved["answered_in_time"] is False
        assert starved["eaten_ms"]["bolt"] > starved["granted_ms"] / 2
    assert told["naive"]["open_requests_after_deadlines"] > 0

    assert ElementTree.parse(picture).getroot().tag.endswith("svg")
    assert not (tmp_path / "up.json").exists()


def test_a_picture_that_cannot_be_saved_is_refused_before_anything_is_played(tmp_path: Path) -> None:
    done = dmesh(tmp_path / "up.json", "demo", "--save", str(tmp_path / "no" / "folder.svg"))
    assert done.returncode == 2
    assert "write the name of an .svg file in a folder that exists" in done.stderr
