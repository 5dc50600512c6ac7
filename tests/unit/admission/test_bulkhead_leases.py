"""A bulkhead loses no slot, learns from finished work, and can be resized."""

from __future__ import annotations

import asyncio
import weakref
from contextvars import ContextVar
from typing import Any

import pytest
from tests.support.slots import SHARES, Pool
from tests.support.virtual import in_virtual_time, now, with_seconds

from deadlinemesh.admission import Bulkhead, Lease, WaitEnd
from deadlinemesh.deadline import Scopes, entered
from deadlinemesh.errors import DeadlineSpent, NoDeadline, Shed


@pytest.mark.parametrize("cancel_after", [0.0, 0.5, 1.0])
@in_virtual_time
async def test_leaving_waiter_takes_no_slot(cancel_after: float) -> None:
    """At 1.0, the cancel comes in the instant in which the waiter gets its slot."""
    pool = Pool(1)
    holder = asyncio.ensure_future(pool.work("acme", 1.0))
    await asyncio.sleep(0)
    waiter = asyncio.ensure_future(pool.work("acme", 9.0))
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(cancel_after, waiter.cancel)
    await holder
    await asyncio.wait([waiter])
    assert (pool.bulkhead.held, pool.bulkhead.waiting) == (0, 0)
    assert await pool.work("acme", 1.0) == 0.0
    assert [wait.end for wait in pool.waits] == [WaitEnd.GRANTED, WaitEnd.LEFT, WaitEnd.GRANTED]


@in_virtual_time
async def test_waiter_leaves_at_the_instant_of_its_deadline() -> None:
    pool = Pool(1)
    holder = asyncio.ensure_future(pool.work("acme", 5.0))
    await asyncio.sleep(0)
    scope = Scopes("hop-a").open(with_seconds(2.0))
    with pytest.raises(DeadlineSpent):
        await scope.run(pool.work("acme", 1.0, seconds=2.0))
    assert (now(), pool.bulkhead.waiting) == (pytest.approx(2.0), 0)
    await holder


@in_virtual_time
async def test_failed_holder_frees_its_slot_and_teaches_nothing() -> None:
    pool = Pool(1)

    async def fail() -> None:
        async with pool.bulkhead.slot():
            raise ZeroDivisionError

    with entered(with_seconds(10.0)):
        for _ in range(20):
            with pytest.raises(ZeroDivisionError):
                await fail()
    assert pool.bulkhead.held == 0
    assert len(pool.bulkhead._queue._tenants["acme"].kinds[""].useful_after) == 0


@in_virtual_time
async def test_lost_slot_is_taken_back_after_its_deadline() -> None:
    pool = Pool(1)
    with entered(with_seconds(2.0)):
        lost: Lease = await pool.bulkhead.acquire()
    waited = await pool.work("acme", 1.0)
    assert 2.25 <= waited <= 2.75
    lost.release()
    assert pool.bulkhead.held == 0


@in_virtual_time
async def test_lost_slot_is_taken_back_without_waiters() -> None:
    pool = await Pool(1).taught(60.0)
    with entered(with_seconds(2.0)):
        lost = await pool.bulkhead.acquire("another kind")
    with pytest.raises(Shed, match="a wait of about 30000 ms"):
        await pool.work("acme", 0.1, seconds=10.0, kind="a third")
    await asyncio.sleep(3.0)
    with pytest.raises(Shed):
        await pool.work("acme", 0.1, seconds=10.0, kind="a third")
    await asyncio.sleep(0.5)
    assert pool.bulkhead.held == 0
    lost.release()


@in_virtual_time
async def test_busy_queue_keeps_nothing_of_a_finished_call() -> None:
    class Mine:
        """An object in the context of a call."""

    mine: ContextVar[Mine] = ContextVar("mine")

    async def first() -> weakref.ref[Mine]:
        mine.set(Mine())
        await pool.work("acme", 0.5)
        return weakref.ref(mine.get())

    pool = Pool(1)
    holder = asyncio.ensure_future(pool.work("acme", 0.5))
    await asyncio.sleep(0)
    claim = asyncio.ensure_future(first())
    await asyncio.sleep(0.4)
    others = [asyncio.ensure_future(pool.work("acme", 0.5)) for _ in range(10)]
    left = await claim
    await holder
    del claim
    await asyncio.sleep(1.0)
    assert (left(), pool.bulkhead.waiting > 0) == (None, True)
    await asyncio.gather(*others)


@in_virtual_time
async def test_second_release_frees_nothing() -> None:
    pool = Pool(2)
    with entered(with_seconds(10.0)):
        first, second = await pool.bulkhead.acquire(), None
        first.release()
        first.release()
        second = await pool.bulkhead.acquire()
    assert pool.bulkhead.held == 1
    second.release()


@in_virtual_time
async def test_slot_needs_a_deadline() -> None:
    with pytest.raises(NoDeadline):
        await Pool(1).bulkhead.acquire()


@pytest.mark.parametrize("options", [{"limit": 0}, {"limit": 1, "guard": 1.0}, {"limit": 1, "most_waiting": -1}])
def test_invalid_bulkhead_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="pool: the limit must be positive"):
        Bulkhead("pool", **options)


@in_virtual_time
async def test_resize_grants_at_once_and_takes_nothing_back() -> None:
    pool = Pool(1)
    works = [asyncio.ensure_future(pool.work("acme", 1.0)) for _ in range(4)]
    await asyncio.sleep(0.5)
    pool.bulkhead.resize(3, shares=SHARES)
    # The last free slot is kept for a newcomer.
    assert (pool.bulkhead.held, pool.bulkhead.waiting) == (2, 2)
    pool.bulkhead.resize(1, shares=SHARES)
    assert (pool.bulkhead.held, pool.bulkhead.waiting) == (2, 2)
    assert [round(wait, 6) for wait in await asyncio.gather(*works)] == [0.0, 0.5, 1.5, 2.5]


@in_virtual_time
async def test_invalid_resize_keeps_the_old_bounds() -> None:
    pool = Pool(2)
    with pytest.raises(ValueError, match="pool: the limit must be positive"):
        pool.bulkhead.resize(0)
    assert pool.bulkhead.limit == 2
