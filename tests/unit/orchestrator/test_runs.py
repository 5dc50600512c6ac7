"""Runs from their beginnings to their ends, on virtual time and without gRPC."""

from __future__ import annotations

import asyncio
import time

import pytest
from tests.support.agent_world import QUICK, Models, Tools
from tests.support.virtual import in_virtual_time, with_seconds

from deadlinemesh.admission import Budget, Bulkhead
from deadlinemesh.deadline import Scopes, entered
from deadlinemesh.deadline.background import Background
from deadlinemesh.errors import Cause, Shed
from deadlinemesh.identity.callers import Tenant
from deadlinemesh.identity.grants import Grant
from deadlinemesh.orchestrator.events import Outcome, RunStarted, ToolCallFinished, ToolCallProgress
from deadlinemesh.orchestrator.execution import Executor
from deadlinemesh.orchestrator.log import COMPACT_EVERY, PIECE
from deadlinemesh.orchestrator.planning import RunOrder
from deadlinemesh.orchestrator.run import EXCERPT, GROWTH_BYTES, WATCHED_BYTES, AgentRun
from deadlinemesh.orchestrator.store import MemoryRunStore
from deadlinemesh.policy import default_policy
from deadlinemesh.telemetry import Telemetry
from deadlinemesh.testing import virtual_time
from deadlinemesh.vocabulary import Phase, TextDelta, ToolCall, ToolStatus

POLICY = default_policy()
ACME = Tenant.of(POLICY, "acme")


class World:
    """An orchestrator with one place for runs, which is taken."""

    async def __aenter__(self) -> World:
        self.places = Bulkhead("runs", 1, clock=virtual_time.clock())
        with entered(with_seconds(60.0, tenant_id="bolt")):
            self.taken = await self.places.acquire()
        background = Background(Scopes("orchestrator"))
        self.store = MemoryRunStore(POLICY.limits)
        self.executor = Executor(background, self.places, Models(), Tools(QUICK), self.store, Telemetry([]))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.taken.release()

    def start(self, due: float) -> AgentRun:
        grant = Grant(ACME, granted=due + 0.1, due=due, requested=due + 0.1)
        context = with_seconds(grant.granted)
        with entered(context):
            run = AgentRun(context, grant, "once", 1)
            self.store.claim(run)
            self.executor.start(run, RunOrder("go"), POLICY)
            return run


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


class Growing:
    """A run that nobody executes, with a budget of its own."""

    def __init__(self, most: int, total: int = 10_000_000) -> None:
        self.hit: list[str] = []
        self.budget = Budget(total, 1.0)
        held = self.budget.take("acme", GROWTH_BYTES)
        grant = Grant(ACME, granted=60.0, due=59.0, requested=60.0)
        self.run = AgentRun(with_seconds(60.0), grant, "", 1, held, most, self.hit.append)

    def finish_call(self, length: int) -> None:
        call = ToolCall("c", "look", "{}")
        self.run.emit(ToolCallFinished(call, ToolStatus.OK, "x" * length, 0.1, None))


@in_virtual_time
async def test_what_comes_of_a_run_is_held_as_it_grows() -> None:
    growing = Growing(10_000_000)
    growing.finish_call(3_000_000)
    assert 3_000_000 < growing.budget.held < 3_100_000
    growing.run.archive()
    assert growing.budget.held == 0


@in_virtual_time
async def test_finished_run_is_held_while_it_is_watched() -> None:
    growing = Growing(10_000_000)
    with growing.run.watched():
        growing.finish_call(1_000_000)
        growing.run.finish(Outcome.COMPLETED, None, "", "", False)
        growing.run.archive()
        assert growing.budget.held == growing.run.size + WATCHED_BYTES
    assert growing.budget.held == 0
    with growing.run.watched(), growing.run.watched():
        assert growing.budget.held == growing.run.size + WATCHED_BYTES
    assert growing.budget.held == 0


@in_virtual_time
async def test_finished_run_that_does_not_fit_is_not_watched() -> None:
    growing = Growing(10_000_000)
    growing.finish_call(1_000_000)
    growing.run.finish(Outcome.COMPLETED, None, "", "", False)
    growing.run.archive()
    assert growing.budget.take("acme", 9_500_000) is not None
    with pytest.raises(Shed), growing.run.watched():
        raise AssertionError("it is watched")
    assert growing.hit == ["memory_bytes"]


@pytest.mark.parametrize(
    ("most", "total", "limit"), [(1_000_000, 10_000_000, "run_bytes"), (10**9, 10**6, "memory_bytes")]
)
@in_virtual_time
async def test_a_run_is_told_once_that_it_is_too_large(most: int, total: int, limit: str) -> None:
    growing = Growing(most, total)
    for _ in range(1000):
        growing.run.emit(TextDelta("x" * 16_000))
    assert growing.hit == [limit]


@in_virtual_time
async def test_a_large_run_tells_the_beginnings_of_results_and_no_progress() -> None:
    growing = Growing(1_000_000)
    for _ in range(20):
        growing.finish_call(100_000)
    growing.run.emit(ToolCallProgress("c", "half", 0.5))
    growing.run.emit(TextDelta("x" * 200_000))
    growing.run.emit(ToolCallProgress("c", "more", 0.6))
    events = [timed.event for timed in growing.run.events]
    lengths = [len(event.content) for event in events if isinstance(event, ToolCallFinished)]
    assert lengths[:4] == [100_000] * 4
    assert all(EXCERPT < one < EXCERPT + 100 for one in lengths[5:])
    assert [event.message for event in events if isinstance(event, ToolCallProgress)] == ["half"]
    assert not growing.hit


@in_virtual_time
async def test_readers_at_any_place_get_all_text_once() -> None:
    growing = Growing(10**9)
    run = growing.run
    run.emit(RunStarted())
    run.agent = object()  # type: ignore[assignment]  # it has begun
    texts: list[list[str]] = []

    async def read(pause: int) -> None:
        text: list[str] = []
        texts.append(text)
        async for timed in run.follow():
            if isinstance(timed.event, TextDelta):
                text.append(timed.event.text)
            for _ in range(pause):
                await asyncio.sleep(0)

    readers = []
    for number in range(20 * COMPACT_EVERY):
        if number % 700 == 0:
            readers.append(asyncio.ensure_future(read(number // 700)))
        run.emit(TextDelta(f"{number} "))
        await asyncio.sleep(0)
    run.agent = None
    run.finish(Outcome.COMPLETED, None, "", "", False)
    await asyncio.gather(*readers)
    whole = "".join(f"{number} " for number in range(20 * COMPACT_EVERY))
    assert {"".join(text) for text in texts} == {whole}
    run.archive()
    pieces = [timed.event.text for timed in run.events if isinstance(timed.event, TextDelta)]
    assert "".join(pieces) == whole
    assert len(pieces) < len(whole) / PIECE * 2 + 1
    assert max(map(len, pieces)) <= PIECE


@in_virtual_time
async def test_a_long_text_in_small_pieces_is_put_together_in_linear_time() -> None:
    def seconds(count: int) -> float:
        run = Growing(10**9).run
        began = time.thread_time()
        for _ in range(count):
            run.emit(TextDelta("x"))
        run.archive()
        return time.thread_time() - began

    seconds(1000)
    assert seconds(100_000) < 10 * 3 * seconds(10_000)
