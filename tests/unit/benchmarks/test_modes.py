"""The pure parts of `dmesh bench modes`: the load is the same on both sides, and no call is taken for another."""

from __future__ import annotations

import pytest
from benchmarks.modes.load import COUNTED_FROM, FLOOD_FROM, MODES, UNTIL, Mode, Run, load
from benchmarks.modes.mesh import policy, request
from benchmarks.modes.world import UPSTREAMS

from deadlinemesh.identity.keys import hash_key, new_key
from deadlinemesh.llm_proxy.providers.intent import wishes
from deadlinemesh.policy import Policy
from deadlinemesh.vocabulary import ToolSpec

URLS = {upstream: f"http://127.0.0.1:{port}" for port, upstream in enumerate(UPSTREAMS, start=8000)}


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_a_seed_makes_one_load(mode: Mode) -> None:
    assert load(mode, "1") == load(mode, "1") != load(mode, "2")


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_b_comes_when_a_has_been_there_for_a_while_and_a_is_counted_once_b_has_built_up(mode: Mode) -> None:
    runs = load(mode, "1")
    assert [run.at for run in runs] == sorted(run.at for run in runs)
    assert min(run.at for run in runs if run.tenant == "B") > FLOOD_FROM
    assert all(run.at < UNTIL for run in runs)
    counted = [run for run in runs if run.counted]
    assert {run.tenant for run in counted} == {"A"}
    assert min(run.at for run in counted) >= COUNTED_FROM
    assert len(counted) >= 16


def test_no_two_calls_of_a_load_have_one_key() -> None:
    for mode in MODES:
        keys = [key for run in load(mode, "1") for key in run.keys]
        assert len(keys) == len(set(keys))


@pytest.mark.parametrize(
    ("mode", "tool"), [("pool starvation", "pool"), ("fan-out", "fan_out"), ("retries", "retries")]
)
@pytest.mark.parametrize("run", [Run("A", 0, 0.0, 1.0), Run("A", 27, 0.0, 1.0), Run("B", 700, 0.0, 1.0, parts=5)])
def test_the_scripted_model_asks_for_each_of_a_runs_keys(mode: str, tool: str, run: Run) -> None:
    given = policy(URLS, 8)["tools"]["http"][tool]
    spec = ToolSpec(tool, given["description"], given["arguments"])
    asked = request(mode, run)
    assert list(asked.tools) == [tool]
    assert [wish.arguments["key"] for wish in wishes(asked.prompt, [spec])] == list(run.keys)


def test_the_meshs_policy_is_one() -> None:
    tenant = {"tier": "professional", "api_keys": [hash_key(new_key("a"))]}
    checked = Policy.model_validate({**policy(URLS, 8), "tenants": {"a": tenant}})
    assert checked.tools.connections_per_host == checked.models["shared"].slots == 8
