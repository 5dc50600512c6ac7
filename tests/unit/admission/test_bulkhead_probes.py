"""Probes show a bulkhead that an upstream has recovered."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from tests.support.slots import Pool
from tests.support.virtual import in_virtual_time, now, with_seconds

from deadlinemesh.deadline import Scopes
from deadlinemesh.errors import DeadlineSpent, Doomed, Shed


@in_virtual_time
async def test_one_probe_is_admitted_after_a_quiet_time() -> None:
    pool = await Pool(2).taught(2.0)
    await asyncio.sleep(4.5)
    scope = Scopes("hop-a").open(with_seconds(0.5))
    with pytest.raises(DeadlineSpent):
        await scope.run(pool.work("acme", 2.0, seconds=0.5))
    with pytest.raises(Doomed):
        await pool.work("acme", 0.1, seconds=0.5)


@in_virtual_time
async def test_probes_after_a_recovery_end_the_refusals() -> None:
    pool = await Pool(2).taught(20.0, times=64)
    refused_at = []
    for _ in range(300):
        await asyncio.sleep(1.0)
        try:
            await pool.work("acme", 0.1, seconds=10.0)
        except Doomed:
            refused_at.append(now() - 64 * 20.0)
    assert max(refused_at) < 42.0  # no probe was due earlier


@in_virtual_time
async def test_one_quick_piece_admits_one_probe_only() -> None:
    pool = await Pool(20).taught(2.0)
    await pool.work("acme", 0.1)
    claims = [asyncio.ensure_future(pool.work("acme", 0.1, seconds=0.5)) for _ in range(10)]
    ended = await asyncio.gather(*claims, return_exceptions=True)
    assert sum(isinstance(one, Doomed) for one in ended) == 9


@in_virtual_time
async def test_recovery_is_seen_while_others_hold_every_slot() -> None:
    pool = await (await Pool(1).taught(1.0, tenant="other")).taught(20.0)
    crowd = [asyncio.ensure_future(pool.keep_busy("other", 1.0)) for _ in range(2)]
    await asyncio.sleep(41.5)
    granted = 0
    for _ in range(120):
        await asyncio.sleep(1.0)
        with suppress(Shed, Doomed):
            await pool.work("acme", 0.1, seconds=10.0)
            granted += 1
    assert granted == 120
    for one in crowd:
        one.cancel()


@in_virtual_time
async def test_recovery_is_seen_while_other_work_waits() -> None:
    pool = await Pool(1).taught(20.0, kind="slow")
    await pool.all(*(pool.work("acme", 1.0) for _ in range(30)))
    crowd = [asyncio.ensure_future(pool.keep_busy("acme", 1.0)) for _ in range(3)]
    await asyncio.sleep(41.5)
    assert await pool.work("acme", 0.1, seconds=10.0, kind="slow") < 1.0
    for one in crowd:
        one.cancel()


@in_virtual_time
async def test_only_one_of_many_waiting_probes_begins() -> None:
    pool = await Pool(1).taught(20.0, kind="slow")
    await pool.all(*(pool.work("acme", 0.1) for _ in range(30)))
    await asyncio.sleep(41.5)
    holder = asyncio.ensure_future(pool.work("acme", 0.5))
    await asyncio.sleep(0)
    pool.begun.clear()
    scopes = Scopes("hop-a")
    works = [
        scopes.open(with_seconds(5.0 + n)).run(pool.work("acme", 20.0, seconds=5.0 + n, kind="slow")) for n in range(5)
    ]
    _, *ended = await asyncio.gather(holder, *works, return_exceptions=True)
    assert pool.begun == ["acme"]
    assert [type(one) for one in ended] == [DeadlineSpent, Shed, Shed, Shed, Shed]


@in_virtual_time
async def test_cancelled_probe_passes_to_next_waiter() -> None:
    pool = await Pool(1).taught(20.0)
    await pool.work("acme", 0.1)
    holder = asyncio.ensure_future(pool.work("other", 5.0))
    await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.0):
            await pool.work("acme", 0.1, seconds=10.0)
    assert await pool.work("acme", 0.1, seconds=10.0) == pytest.approx(4.0)
    await holder


@in_virtual_time
async def test_probe_with_less_time_than_the_last_piece_is_shed() -> None:
    pool = await Pool(1).taught(20.0)
    await pool.work("acme", 2.0)
    holder = asyncio.ensure_future(pool.work("other", 7.0))
    await asyncio.sleep(0)
    with pytest.raises(Shed, match="took longer than expected"):
        await pool.work("acme", 2.0, seconds=8.0)
    assert pool.begun == ["acme", "other"]
    await holder
