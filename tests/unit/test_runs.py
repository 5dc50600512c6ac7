"""Runs from their beginnings to their ends, on virtual time and without gRPC."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.agent_world import QUICK, Models, Tools
from tests.virtual import in_virtual_time, with_seconds

from deadlinemesh.admission import Bulkhead
from deadlinemesh.deadline import Phase, Scopes, entered
from deadlinemesh.deadline.background import Background
from deadlinemesh.errors import Cause, Shed
from deadlinemesh.orchestrator.agent import Assignment
from deadlinemesh.orchestrator.edge import HOP, Grant
from deadlinemesh.orchestrator.events import Outcome
from deadlinemesh.orchestrator.runs import AgentRun, Runs
from deadlinemesh.orchestrator.upstreams import Upstreams
from deadlinemesh.policy import Tenant, default_policy
from deadlinemesh.telemetry import Telemetry
from deadlinemesh.testing import virtual_time

POLICY = default_policy()
ACME = Tenant.of(POLICY, "acme")


async def prepared(run: AgentRun) -> Assignment:
    raise AssertionError("no run of these gets that far")


class World:
    """An orchestrator with one place for runs, which is taken."""

    async def __aenter__(self) -> World:
        self.places = Bulkhead("runs", 1, clock=virtual_time.clock())
        with entered(with_seconds(60.0, tenant_id="bolt")):
            self.taken = await self.places.acquire()
        background = Background(Scopes("orchestrator"))
        telemetry = Telemetry([])
        upstreams = Upstreams(telemetry, HOP)
        self.runs = Runs(background, self.places, Models(), Tools(QUICK), POLICY.limits, telemetry, upstreams)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.taken.release()

    def start(self, due: float) -> AgentRun:
        grant = Grant(ACME, granted=due + 0.1, due=due, requested=due + 0.1)
        with entered(with_seconds(grant.granted)):
            return self.runs.start(grant, "", prepared)


@in_virtual_time
async def test_a_run_whose_time_passes_between_its_grant_and_its_turn_has_spent_its_deadline() -> None:
    async with World() as world:
        run = world.start(due=1.5)
        await asyncio.sleep(1.0)
        world.taken.release()
        virtual_time.clock().advance(0.6)  # the place is its, but the loop cannot come to it
        await run.ended()
        assert run.finished is not None
        assert (run.finished.outcome, run.finished.cause) == (Outcome.DEADLINE_SPENT, Cause.DEADLINE_SPENT)
        assert run.finished.phases[Phase.ADMISSION] == pytest.approx(1.6)
        assert world.places.held == 0


@in_virtual_time
async def test_a_run_that_is_refused_while_it_has_time_is_told_why() -> None:
    async with World() as world:
        world.places.resize(1, most_waiting=0)
        run = world.start(due=0.04)
        await run.ended()
        assert run.finished is None
        assert isinstance(run.refused, Shed)
