"""The invariants hold in 10,000 runs, of which a quarter is played where CI does not ask for all; and what the proof stands on."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from hypothesis import given, settings
from tests.simulation import scenario as scenario_module
from tests.simulation.explore import explore, scenarios
from tests.simulation.scenario import Scenario, named
from tests.simulation.world import Trace, play

RUNS = 10_000 if os.environ.get("CI") == "true" else 2_500

START = 1
"""Which runs: always the same, so that a failure is the work of the change under test. `make simulate` looks at others."""


@pytest.mark.timeout(1200)
def test_the_invariants_hold_in_thousands_of_runs(capsys: pytest.CaptureFixture[str]) -> None:
    report = explore(START, RUNS)
    with capsys.disabled():
        print(f"\n{report}")
    if report.example:
        pytest.fail(report.example, pytrace=False)
    assert report.runs >= RUNS
    assert report.faults.keys() >= FAULTS
    assert report.reached.keys() >= REACHED
    if RUNS >= 10_000:
        assert report.faults.keys() >= RARER_FAULTS


FAULTS = {
    "a client cancels its run",
    "a client hangs up",
    "a hop stops",
    "a model calls tools that it was not offered",
    "a model clings to its work",
    "a model never ends",
    "a read of the store is cut",
    "a tool clings to its work",
    "a tool fails for now",
    "a tool never ends",
    "a tool works, and leaves a task behind",
    "a worker process is killed at work",
}
"""Without these the proof would be worth less than it says."""

RARER_FAULTS = {
    "a model that shortens clings to its work",
    "a model that shortens fails",
    "a model that shortens never ends",
    "a model that shortens says nothing",
    "a model that shortens says too much",
    "a read of the store clings to its work",
    "a read of the store fails",
    "a tool in a worker process never ends",
    "a worker process crashes",
    "a worker process ignores its kill for a moment",
    "a write of the store clings to its work",
    "a write of the store fails",
    "a write of the store is cut",
}
"""Without these either; but a quarter of the runs may do without one of them."""

REACHED = {
    "a kept result is found",
    "a model is given a cut result",
    "a model is given a shortened result",
    "a worker process is used again",
}
"""Nor would it be worth as much without these, which are no faults."""


@settings(max_examples=50, database=None, deadline=None)
@given(scenarios())
def test_a_seed_names_the_scenario_that_was_drawn(scenario: Scenario) -> None:
    assert named(scenario.seed) == scenario


@pytest.mark.parametrize("seed", [0, 1, 12345, 3**400, 7**500])
def test_any_number_is_the_seed_of_a_scenario_that_takes_the_same_course_each_time(seed: int) -> None:
    assert _course(play(named(seed))) == _course(play(named(seed)))


def test_a_scenario_is_told_as_the_code_that_makes_it() -> None:
    scenario = named(7**900)
    assert replace(eval(str(scenario), vars(scenario_module)), seed=scenario.seed) == scenario


def _course(trace: Trace) -> list[object]:
    """A trace without the names that are drawn for its runs, and without their order where that is of no account."""
    numbers = {seen.run_id: seen.run for seen in trace.seen}
    works = [replace(work, run_id="") for work in trace.works]
    ends = [(seen.run, seen.ended_at, seen.code, len(seen.heard)) for seen in trace.seen]
    events = [
        (type(event).__name__, numbers.get(event.run_id), getattr(event, "hop", ""), getattr(event, "ended_at", None))
        for event in trace.events
        if hasattr(event, "run_id")
    ]
    return [works, ends, sorted(events, key=repr)]
