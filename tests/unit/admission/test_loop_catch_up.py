"""After work that blocks the event loop, grants pause until it has seen new requests."""

from __future__ import annotations

import asyncio

import pytest
from tests.support.virtual import in_virtual_time, now, with_seconds

from deadlinemesh.admission import Bulkhead
from deadlinemesh.admission.loop_catch_up import AFTER, LONGEST, QUIET, LoopCatchUp
from deadlinemesh.deadline import entered
from deadlinemesh.testing import virtual_time


class Loop:
    """A bulkhead of one slot, and work for it: computing or waiting."""

    def __init__(self) -> None:
        self.bulkhead = Bulkhead("loop", 1, clock=virtual_time.clock())
        self.began_at: list[float] = []

    async def compute(self, seconds: float) -> None:
        with entered(with_seconds(100.0)):
            async with self.bulkhead.slot():
                self.began_at.append(now())
                virtual_time.clock().advance(seconds)  # as a handler without an await

    async def wait(self, seconds: float) -> None:
        with entered(with_seconds(100.0)):
            async with self.bulkhead.slot():
                self.began_at.append(now())
                await asyncio.sleep(seconds)


@in_virtual_time
async def test_next_grant_after_computing_waits_for_a_quiet_loop() -> None:
    loop = Loop()
    await loop.compute(AFTER / 2)
    await loop.compute(AFTER / 2)
    await asyncio.sleep(0)
    await asyncio.gather(loop.compute(AFTER / 2), loop.compute(AFTER / 2))
    quiet_at = AFTER + 2 * QUIET  # two requests came within the first look
    assert loop.began_at == pytest.approx([0.0, AFTER / 2, quiet_at, quiet_at + AFTER / 2])


@in_virtual_time
async def test_pause_lasts_while_requests_arrive() -> None:
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
async def test_pause_ends_even_if_requests_keep_arriving() -> None:
    loop = Loop()
    await loop.compute(AFTER)
    crowd = []
    while len(loop.began_at) < 2:
        crowd.append(asyncio.ensure_future(loop.compute(0.0)))
        await asyncio.sleep(QUIET / 2)
    assert loop.began_at[1] <= AFTER + LONGEST + QUIET
    await asyncio.gather(*crowd)


@in_virtual_time
async def test_waiting_work_causes_no_pause() -> None:
    loop = Loop()
    await asyncio.gather(*(loop.wait(1.0) for _ in range(4)))
    assert loop.began_at == pytest.approx([0.0, 1.0, 2.0, 3.0])


async def test_pause_needs_no_timer_on_a_real_clock() -> None:
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    timers = len(loop._scheduled)  # type: ignore[attr-defined]  # there is no public way to ask
    breath = LoopCatchUp(over.set)
    breath.held_up(AFTER)
    assert breath.taken
    while not over.is_set():
        assert len(loop._scheduled) == timers  # type: ignore[attr-defined]
        await asyncio.sleep(0)
    assert not breath.taken
