"""Worlds in which an invariant did not hold, once."""

from __future__ import annotations

import pytest
from tests.simulation.explore import violations
from tests.simulation.scenario import TENANTS, Client, RunScript, Scenario, Step, Turn

SLOW = (Turn((Step(after=10.0),)),)

FOUND = {
    "the cause of a model's last moment was the proxy's and not the run's own": Scenario(
        runs=(RunScript(client=Client(timeout=0.2), turns=SLOW),)
    ),
    "who waited for a place was told of it when its own timer had fired": Scenario(
        places=8,
        runs=(
            *(RunScript(tenant, turns=SLOW) for tenant in TENANTS for _ in range(4)),
            RunScript("bolt", arrives_at=0.1, client=Client(timeout=0.5)),
        ),
    ),
}


@pytest.mark.parametrize("scenario", FOUND.values(), ids=FOUND)
def test_what_was_found_once_is_not_so_any_more(scenario: Scenario) -> None:
    assert violations(scenario) == []
