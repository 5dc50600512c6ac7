"""Has hypothesis look for a scenario in which an invariant does not hold, and make it as small as it can."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cache

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from tests.simulation.invariants import INVARIANTS
from tests.simulation.scenario import Choices, Scenario, chosen, named
from tests.simulation.world import play

__all__ = ["Report", "explore", "replay", "scenarios", "violations"]

_BATCH = 250
"""Scenarios that hypothesis is asked for at a time, until there were runs enough."""

_PATIENCE = 400
"""Scenarios that are played to make one smaller that breaks an invariant: about half a minute."""


_RUNS_EACH = 9
"""Runs that a scenario has on average."""

_SETTINGS = settings(
    database=None,  # a replay needs no memory but the seed
    deadline=None,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=tuple(HealthCheck),
    print_blob=False,
    report_multiple_bugs=False,
)


class Violated(AssertionError):
    """A scenario broke an invariant."""


@dataclass(slots=True)
class Report:
    """What was looked at, and what was found."""

    scenarios: int = 0
    runs: int = 0
    invariants: int = 0
    """Invariants checked: each once for each scenario."""
    faults: Counter[str] = field(default_factory=Counter)
    reached: Counter[str] = field(default_factory=Counter)
    """What else happened that has to, for the invariants about it to be worth anything."""
    violations: int = 0
    example: str = ""
    """The smallest scenario found that breaks an invariant."""

    def __str__(self) -> str:
        faults = "\n".join(f"{count:>10}  {fault}" for fault, count in self.faults.most_common())
        counts = (
            f"{self.runs} runs in {self.scenarios} scenarios, {self.faults.total()} faults injected, "
            f"{self.invariants} invariants checked, {self.violations} violations"
        )
        reached = ", ".join(f"{what}: {count}" for what, count in self.reached.most_common())
        return "\n".join(filter(None, (faults, reached, counts, self.example)))


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    """Scenarios, choice by choice: each of them shrinks to the calmest, and each run to none."""

    return chosen(Choices(lambda options: draw(_index(options)), lambda make: draw(st.builds(make))))


@cache
def _index(options: int) -> st.SearchStrategy[int]:
    return st.integers(0, options - 1)


def explore(start: int, runs: int) -> Report:
    """Play scenarios with at least so many runs, or until one breaks an invariant. `start` decides which ones they are."""
    report = Report()
    broken: dict[int, str] = {}
    tried = 0

    def holds(scenario: Scenario) -> None:
        nonlocal tried
        if broken and scenario.seed not in broken:
            tried += 1
            if tried > _PATIENCE:
                return  # taken for sound, so that hypothesis comes to an end
        try:
            _check(scenario, report)
        except Violated as violated:
            broken[scenario.seed] = str(violated)
            raise

    while report.runs < runs and not broken:
        try:
            # The first that hypothesis tries is the calmest, in which nobody calls: by itself it would never be enough.
            batch = settings(_SETTINGS, max_examples=min(_BATCH, (runs - report.runs) // _RUNS_EACH + 2))
            seed(start * 1_000_003 + report.scenarios)(batch(given(scenarios())(holds)))()
        except Violated as violated:
            report.example = str(violated)
        except Flaky:  # what a set holds comes in an order of its own each time: the world is not quite the same twice
            report.example = next(reversed(broken.values()))
    return report


def replay(number: int) -> Report:
    """Play the scenario that `number` names, and tell all about it."""
    report = Report()
    scenario = named(number)
    try:
        _check(scenario, report)
    except Violated as violated:
        report.example = str(violated)
    return report


def violations(scenario: Scenario) -> list[str]:
    """What the invariants have against `scenario`, each sentence with the invariant's name."""
    return _found(scenario, Report())


def _check(scenario: Scenario, report: Report) -> None:
    found = _found(scenario, report)
    if found:
        raise Violated("\n".join((str(scenario), *found, f"to play it again: make simulate SEED={scenario.seed:#x}")))


def _found(scenario: Scenario, report: Report) -> list[str]:
    trace = play(scenario)
    found = [f"{invariant.__name__}: {what}" for invariant in INVARIANTS for what in invariant(trace)]
    report.scenarios += 1
    report.runs += len(scenario.runs)
    report.invariants += len(INVARIANTS)
    report.faults += trace.faults
    report.reached += trace.reached
    report.violations += len(found)
    return found
