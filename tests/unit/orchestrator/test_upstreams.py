"""What is learned of an upstream stays with its tenant."""

from __future__ import annotations

import pytest
from tests.support.agent_world import ANSWER, QUICK, Models, Tools, World, asks_for
from tests.support.virtual import in_virtual_time, now, with_seconds

from deadlinemesh.deadline import entered
from deadlinemesh.errors import UpstreamFailed
from deadlinemesh.orchestrator.upstreams import KNOWN, NEWS_FOR, Upstreams, UpstreamStats
from deadlinemesh.telemetry import Telemetry
from deadlinemesh.testing import virtual_time
from deadlinemesh.vocabulary import ToolStarted


def known(upstreams: Upstreams, tenant_id: str) -> UpstreamStats:
    with entered(with_seconds(10.0, tenant_id=tenant_id)):
        return upstreams.of("tool look")


@in_virtual_time
async def test_learned_times_belong_to_one_tenant() -> None:
    upstreams = Upstreams(Telemetry([]), "orchestrator")
    for _ in range(KNOWN):
        known(upstreams, "acme").took(9.0)
    assert known(upstreams, "acme").usually == pytest.approx(9.0, rel=0.1)
    assert known(upstreams, "bolt").usually == 0.0


@in_virtual_time
async def test_retry_budget_belongs_to_one_tenant() -> None:
    world, attempts = World(), {}
    for tenant_id in ("acme", "bolt"):
        for _ in range(30 if tenant_id == "acme" else 1):
            tools = Tools([ToolStarted(), UpstreamFailed("down")])
            await world.run(Models(main=[asks_for("look"), ANSWER]), tools, tenant_id=tenant_id)
            attempts[tenant_id] = len(tools.began)
    assert attempts == {"acme": 1, "bolt": 2}


@in_virtual_time
async def test_one_probe_is_taken_until_there_is_news() -> None:
    stats = UpstreamStats("tool look", virtual_time.clock(), Telemetry([]), "orchestrator")
    for _ in range(KNOWN):
        stats.took(1.0)
    assert not stats.take_probe()
    virtual_time.clock().advance(NEWS_FOR + 0.1)
    assert [stats.take_probe() for _ in range(3)] == [True, False, False]


@in_virtual_time
async def test_failed_call_waits_as_long_as_its_error_asks() -> None:
    world = World()
    tools = Tools([ToolStarted(), UpstreamFailed("down", retry_after=3.0)], QUICK)
    await world.run(Models(main=[asks_for("look"), ANSWER]), tools)
    first, second = tools.began
    assert second - first >= 3.0
    assert now() >= 3.0
