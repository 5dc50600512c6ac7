"""A bulkhead dooms or sheds work that could not be useful in time, and no other."""

from __future__ import annotations

import asyncio

import pytest
from tests.support.slots import Pool
from tests.support.virtual import in_virtual_time, now, with_seconds

from deadlinemesh.admission import Bulkhead, WaitEnd
from deadlinemesh.deadline import entered
from deadlinemesh.errors import (
    ClientCancelled,
    DeadlineSpent,
    DeadlineSpentUpstream,
    Doomed,
    Draining,
    InternalFailure,
    Shed,
    Stopped,
    UpstreamFailed,
    UpstreamRefused,
)
from deadlinemesh.testing import virtual_time


@in_virtual_time
async def test_work_with_too_little_time_is_doomed() -> None:
    pool = await Pool(2).taught(2.0)
    with pytest.raises(
        Doomed, match=r"500 ms are left for pool, and nine in ten .* for this tenant took more than 2000 ms"
    ):
        await pool.work("acme", 2.0, seconds=0.5)
    assert pool.begun == []
    assert [wait.end for wait in pool.waits] == [WaitEnd.DOOMED]


@in_virtual_time
async def test_kinds_are_judged_separately() -> None:
    pool = await Pool(2).taught(2.0, kind="slow")
    assert await pool.work("acme", 0.1, seconds=0.5, kind="quick") == 0.0


@in_virtual_time
async def test_tenants_are_judged_separately() -> None:
    pool = await Pool(2).taught(2.0, tenant="slow")
    assert await pool.work("acme", 0.1, seconds=0.5) == 0.0


@in_virtual_time
async def test_few_known_times_doom_nothing() -> None:
    pool = await Pool(2).taught(2.0, times=7)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await pool.work("acme", 2.0, seconds=0.5)


@pytest.mark.parametrize("failure", [UpstreamFailed, UpstreamRefused, InternalFailure, Shed, Doomed])
@in_virtual_time
async def test_time_until_a_failure_is_no_service_time(failure: type[Stopped]) -> None:
    pool = await Pool(2).taught(1.0)
    for _ in range(8):
        await pool.end(failure, after=5.0)
    assert await pool.work("acme", 1.0, seconds=3.0) == 0.0


@pytest.mark.parametrize(
    "cut", [asyncio.CancelledError, DeadlineSpent, DeadlineSpentUpstream, ClientCancelled, Draining]
)
@in_virtual_time
async def test_cut_work_counts_as_at_least_as_long(cut: type[BaseException]) -> None:
    pool = await Pool(2).taught(1.0)
    for _ in range(8):
        await pool.end(cut, after=5.0)
    with pytest.raises(Doomed):
        await pool.work("acme", 1.0, seconds=3.0)


@in_virtual_time
async def test_first_waiter_of_a_slotless_tenant_is_not_shed() -> None:
    pool = await (await Pool(1).taught(1.0, tenant="other")).taught(20.0, kind="slow")
    crowd = [asyncio.ensure_future(pool.keep_busy("other", 1.0)) for _ in range(2)]
    await asyncio.sleep(0)
    works = [asyncio.ensure_future(pool.work("acme", 0.1, seconds=10.0, kind="new")) for _ in range(3)]
    ended = await asyncio.gather(*works, return_exceptions=True)
    assert [type(one) for one in ended] == [float, Shed, Shed]
    for one in crowd:
        one.cancel()


@in_virtual_time
async def test_work_needs_only_the_time_until_it_is_useful() -> None:
    bulkhead = Bulkhead("pool", 2, clock=virtual_time.clock())
    with entered(with_seconds(1000.0)):
        for _ in range(10):
            async with bulkhead.slot() as slot:
                await asyncio.sleep(0.2)
                slot.useful()
                await asyncio.sleep(5.0)
    with entered(with_seconds(0.3)):
        async with bulkhead.slot():
            await asyncio.sleep(0.2)
    with entered(with_seconds(0.1)), pytest.raises(Doomed):
        async with bulkhead.slot():
            pass


@in_virtual_time
async def test_too_long_wait_is_shed_with_a_retry_after() -> None:
    pool = await Pool(1).taught(1.0)
    held = [asyncio.ensure_future(pool.work("acme", 1.0, seconds=15.0)) for _ in range(12)]
    await asyncio.sleep(0)
    with pytest.raises(Shed, match="a wait of about 11500 ms") as refused:
        await pool.work("acme", 1.0, seconds=15.0)
    assert refused.value.retry_after == pytest.approx(11.5 + 1.0 - 0.8 * 15.0)
    assert max(await asyncio.gather(*held)) == pytest.approx(11.0)


@in_virtual_time
async def test_earlier_deadline_overtakes_later_ones() -> None:
    pool = await Pool(1).taught(1.0)
    held = [asyncio.ensure_future(pool.work("acme", 1.0, seconds=60.0)) for _ in range(12)]
    await asyncio.sleep(0)
    assert await pool.work("acme", 1.0, seconds=3.0) == pytest.approx(1.0)
    await asyncio.gather(*held)


@in_virtual_time
async def test_each_tenants_queue_is_bounded_separately() -> None:
    pool = Pool(1, most_waiting=5)
    crowd = [asyncio.ensure_future(pool.work("crowd", 1.0)) for _ in range(50)]
    await asyncio.sleep(0)
    assert await pool.work("acme", 1.0) == pytest.approx(1.0)
    ended = await asyncio.gather(*crowd, return_exceptions=True)
    assert sum(isinstance(one, Shed) for one in ended) == 44
    assert all(one.retry_after for one in ended if isinstance(one, Shed))


@in_virtual_time
async def test_waiter_is_shed_after_an_unexpectedly_long_wait() -> None:
    pool = await Pool(1).taught(1.0)
    slow = asyncio.ensure_future(pool.work("acme", 2.2))
    await asyncio.sleep(0)
    with pytest.raises(Shed, match="took longer than expected"):
        await pool.work("acme", 1.0, seconds=3.0)
    await slow
    assert pool.begun == ["acme"]


@in_virtual_time
async def test_grant_taken_up_too_late_is_shed() -> None:
    pool = Pool(1)

    async def hold_then_compute() -> None:
        await pool.work("acme", 1.0)
        # The slot is granted, but the blocked loop cannot resume the waiter yet.
        virtual_time.clock().advance(0.6)

    holder = asyncio.ensure_future(hold_then_compute())
    await asyncio.sleep(0)
    late = asyncio.ensure_future(pool.work("acme", 1.0, seconds=1.5))
    await holder
    with pytest.raises(Shed, match="took longer than expected"):
        await late
    assert (pool.begun, pool.bulkhead.held) == (["acme"], 0)


@in_virtual_time
async def test_overloaded_bulkhead_begins_only_timely_work() -> None:
    pool = await Pool(1).taught(0.005)
    late, done, refused = list[float](), list[float](), 0

    async def call() -> None:
        nonlocal refused
        deadline_at = now() + 0.1
        try:
            await pool.work("acme", 0.005, seconds=0.1)
        except (Shed, Doomed):
            refused += 1
        else:
            (done if now() <= deadline_at else late).append(now())

    async with asyncio.TaskGroup() as group:
        for _ in range(4000):
            group.create_task(call())
            await asyncio.sleep(0.0025)
    assert (len(done) >= 1990, late) == (True, [])
    assert len(done) + refused == 4000
