"""The network between any two goes wrong in mid-run, for longer than any run has."""

from __future__ import annotations

import pytest
from tests.chaos.invariants import check
from tests.chaos.mesh import HIT, SHORT, SPARED, TENANTS, Mesh, Scene
from tests.chaos.plans import fetches, mixed, speaks
from tests.chaos.toxics import FAULTS

pytestmark = pytest.mark.asyncio(loop_scope="session")

PAIRS = {
    f"edge of {HIT}": {HIT},
    f"provider of {HIT}": {HIT},
    f"upstream of {HIT}": {HIT},
    "llm-proxy": TENANTS,
    "tool-runner": TENANTS,
}
"""Each pair, and whose runs need it."""


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("pair", PAIRS)
async def test_budgets_hold_whatever_the_network_does(mesh: Mesh, pair: str, fault: str) -> None:
    scene = Scene(mesh, hit=PAIRS[pair], unreachable={HIT} if pair.startswith("edge") else ())
    ample = SHORT if PAIRS[pair] is TENANTS else None  # who is spared has all the time of its tier
    scene.begin(*mixed(ample))
    await scene.at_work()
    await scene.suffer(pair, fault, FAULTS[fault])
    scene.begin(speaks(HIT), fetches(HIT), speaks(SPARED, timeout=ample), fetches(SPARED, timeout=ample))
    await scene.over()
    check(scene)
