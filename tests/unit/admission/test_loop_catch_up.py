"""Between pieces of work that hold the event loop up, it is given the time to see who came."""

from __future__ import annotations

import asyncio

import pytest
from tests.support.virtual import in_virtual_time, now, with_seconds

from deadlinemesh.admission import Bulkhead
from deadlinemesh.admission.loop_catch_up import AFTER, LONGEST, QUIET, LoopCatchUp
from deadlinemesh.deadline import entered
from deadlinemesh.testing import virtual_time


class Loop:
    """One slot, and work for it that either computes or waits."""

    def __init__(self) -> None:
        self.bulkhead = Bulkhead("loop", 1, clock=virtual_time.clock())
        self.began_at: list[float] = []

    async def compute(self, seconds: float) -> None:
        with entered(with_seconds(100.0)):
            async with self.bulkhead.slot():
                self.began_at.append(now())
                virtual_time.clock().advance(seconds)  # as a handler does that never awaits

    async def wait(self, seconds: float) -> None:
        with entered(with_seconds(100.0)):
            async with self.bulkhead.slot():
                self.began_at.append(now())
                await asyncio.sleep(seconds)


@in_virtual_time
async def test_after_enough_computing_the_next_begins_when_the_loop_is_quiet() -> None:
    loop = Loop()
    await loop.compute(AFTER / 2)
    await loop.compute(AFTER / 2)
    await asyncio.sleep(0)
    await asyncio.gather(loop.compute(AFTER / 2), loop.compute(AFTER / 2))
    quiet_at = AFTER + 2 * QUIET  # two came within the first look
    assert loop.began_at == pytest.approx([0.0, AFTER / 2, quiet_at, quiet_at + AFTER / 2])


@in_virtual_time
async def test_a_breath_lasts_while_claims_keep_coming() -> None:
    loop = Loop()
    await loop.compute(AFTER)
    late = []
    for _ in range(5):
        late.append(asyncio.ensure_future(loop.compute(0.0)))
        await asyncio.sleep(QUIET * 0.9)
    assert loop.began_at[1:] == []
    await asyncio.gather(*late)
    assert loop.began_at[1] < AFTER + 7 * QUIET


@in_virtual_time
async def test_a_breath_has_an_end_however_many_come() -> None:
    loop = Loop()
    await loop.compute(AFTER)
    crowd = []
    while len(loop.began_at) < 2:
        crowd.append(asyncio.ensure_future(loop.compute(0.0)))
        await asyncio.sleep(QUIET / 2)
    assert loop.began_at[1] <= AFTER + LONGEST + QUIET
    await asyncio.gather(*crowd)


@in_virtual_time
async def test_work_that_waits_holds_nothing_up() -> None:
    loop = Loop()
    await asyncio.gather(*(loop.wait(1.0) for _ in range(4)))
    assert loop.began_at == pytest.approx([0.0, 1.0, 2.0, 3.0])


async def test_a_breath_needs_no_timer_where_time_goes_on_by_itself() -> None:
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    timers = len(loop._scheduled)  # type: ignore[attr-defined]  # there is no public way to ask
    breath = LoopCatchUp(over.set)
    breath.held_up(AFTER)
    assert breath.taken
    while not over.is_set():
        assert len(loop._scheduled) == timers  # type: ignore[attr-defined]
        await asyncio.sleep(0)
    assert not breath.taken
