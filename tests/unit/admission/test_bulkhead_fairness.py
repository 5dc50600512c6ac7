"""A bulkhead shares its slots by band, weight and deadline, and lends only spare ones."""

from __future__ import annotations

import asyncio

import pytest
from tests.support.slots import Pool
from tests.support.virtual import in_virtual_time

from deadlinemesh.admission import WaitEnd
from deadlinemesh.admission.queue import TenantQueue
from deadlinemesh.errors import Shed


@in_virtual_time
async def test_waiters_begin_in_turn_and_learn_their_wait() -> None:
    pool = Pool(1)
    assert await pool.all(*(pool.work("acme", 1.0) for _ in range(4))) == [0.0, 1.0, 2.0, 3.0]
    assert [(wait.end, round(wait.seconds, 6)) for wait in pool.waits] == [
        (WaitEnd.GRANTED, n) for n in (0.0, 1.0, 2.0, 3.0)
    ]
    assert (pool.bulkhead.held, pool.bulkhead.waiting) == (0, 0)


@in_virtual_time
async def test_earliest_deadline_of_a_tenant_goes_first() -> None:
    pool = Pool(1)
    claims = [("now", 10.0), ("late", 90.0), ("soon", 20.0), ("later", 95.0), ("sooner", 15.0)]
    await pool.all(*(pool.work("acme", 1.0, seconds=seconds, name=name) for name, seconds in claims))
    assert pool.begun == ["now", "sooner", "soon", "late", "later"]


@in_virtual_time
async def test_tenants_share_slot_seconds_by_weight() -> None:
    pool = Pool(1)
    await pool.taught(1.0, tenant="acme")
    works = [pool.work("acme", 1.0) for _ in range(40)] + [pool.work("zenith", 1.0, tier="big") for _ in range(40)]
    await pool.all(*works)
    assert pool.begun[:40].count("zenith") == pytest.approx(30, abs=2)


@in_virtual_time
async def test_tenant_with_slow_calls_gets_fewer_of_them() -> None:
    pool = Pool(1)
    await pool.all(*(pool.work("slow", 4.0) for _ in range(20)), *(pool.work("quick", 1.0) for _ in range(20)))
    assert pool.begun[:15].count("quick") == pytest.approx(12, abs=1)


@in_virtual_time
async def test_idle_time_gives_no_credit() -> None:
    pool = Pool(1)
    await pool.all(*(pool.work("busy", 1.0) for _ in range(50)))
    pool.begun.clear()
    await pool.all(*(pool.work(tenant, 1.0) for _ in range(20) for tenant in ("busy", "fresh")))
    assert pool.begun[:20].count("busy") == pytest.approx(10, abs=1)


@in_virtual_time
async def test_higher_band_goes_first_except_for_the_guard() -> None:
    pool = Pool(1, guard=0.1)
    works = [pool.work("grand", 1.0, tier="first") for _ in range(60)] + [pool.work("small", 1.0) for _ in range(20)]
    await pool.all(*works)
    assert pool.begun[:51].count("small") == 5


@in_virtual_time
async def test_lower_band_without_a_guard_waits_for_the_higher() -> None:
    pool = Pool(1, guard=0.0)
    await pool.all(*(pool.work("grand", 1.0, tier="first") for _ in range(30)), pool.work("small", 1.0))
    assert pool.begun[-1] == "small"


@in_virtual_time
async def test_guard_turn_is_not_spent_on_a_late_waiter() -> None:
    pool = await Pool(1, guard=0.1).taught(4.0, tenant="small")
    crowd = [asyncio.ensure_future(pool.work("grand", 1.0, tier="first")) for _ in range(40)]
    await asyncio.sleep(0)
    late = asyncio.ensure_future(pool.work("small", 4.0, seconds=12.0))
    soon = asyncio.ensure_future(pool.work("small", 4.0))
    with pytest.raises(Shed, match="took longer than expected"):
        await late
    assert await soon == pytest.approx(10.0)
    await asyncio.gather(*crowd)


@in_virtual_time
async def test_late_waiters_give_the_lower_band_no_turns() -> None:
    pool = await Pool(1, guard=0.1).taught(4.0, tenant="grand")
    holder = asyncio.ensure_future(pool.work("other", 30.0, tier="first"))
    await asyncio.sleep(0)
    late = [asyncio.ensure_future(pool.work("grand", 4.0, seconds=29.0 + n / 10, tier="first")) for n in range(5)]
    crowd = [asyncio.ensure_future(pool.work("other", 1.0, tier="first")) for _ in range(20)]
    small = asyncio.ensure_future(pool.work("small", 1.0))
    await asyncio.gather(holder, *late, return_exceptions=True)
    assert await small == pytest.approx(30.0 + 9.0)
    await asyncio.gather(*crowd)


@in_virtual_time
async def test_newcomer_in_a_lower_band_shares_its_guard_turns() -> None:
    pool = Pool(1, guard=0.1)
    works = [pool.work("grand", 1.0, tier="first") for _ in range(220)] + [pool.work("noisy", 1.0) for _ in range(150)]
    crowd = [asyncio.ensure_future(work) for work in works]
    await asyncio.sleep(100.5)
    crowd += [asyncio.ensure_future(pool.work("polite", 1.0)) for _ in range(10)]
    await asyncio.sleep(100.0)
    assert pool.begun[101:201].count("polite") == pytest.approx(5, abs=1)
    for one in crowd:
        one.cancel()


@in_virtual_time
async def test_tenant_begins_as_a_newcomer_in_another_band() -> None:
    pool = Pool(1, guard=0.5)
    crowd = [asyncio.ensure_future(pool.work("grand", 1.0, tier="first")) for _ in range(200)]
    await asyncio.gather(*(pool.work("acme", 1.0, tier="first") for _ in range(30)))
    pool.begun.clear()
    works = [pool.work(tenant, 1.0) for _ in range(20) for tenant in ("acme", "zenith")]
    crowd += [asyncio.ensure_future(work) for work in works]
    await asyncio.sleep(40.0)
    assert (pool.begun.count("acme"), pool.begun.count("zenith")) == pytest.approx((10, 10), abs=1)
    for one in crowd:
        one.cancel()


@in_virtual_time
async def test_last_free_slot_is_kept_for_the_next_tenant() -> None:
    pool = Pool(4)
    hogs = [asyncio.ensure_future(pool.work("hog", 500.0)) for _ in range(10)]
    await asyncio.sleep(1.0)
    assert pool.bulkhead.held == 3
    assert await pool.work("acme", 1.0) == 0.0
    for hog in hogs:
        hog.cancel()


@in_virtual_time
async def test_lone_tenant_gets_a_single_slot() -> None:
    assert await Pool(1).work("acme", 1.0) == 0.0


@in_virtual_time
async def test_recent_need_of_a_tenant_is_kept_free() -> None:
    pool = Pool(8)
    await pool.all(*(pool.work("acme", 1.0) for _ in range(3)))
    hogs = [asyncio.ensure_future(pool.work("hog", 500.0)) for _ in range(20)]
    await asyncio.sleep(1.0)
    assert pool.bulkhead.held == 5
    assert await pool.all(*(pool.work("acme", 1.0) for _ in range(3))) == [0.0, 0.0, 0.0]
    for hog in hogs:
        hog.cancel()


@in_virtual_time
async def test_faded_need_is_lent_without_a_new_request() -> None:
    pool = Pool(8)
    await pool.all(*(pool.work("acme", 1.0) for _ in range(3)))
    hogs = [asyncio.ensure_future(pool.work("hog", 500.0)) for _ in range(20)]
    await asyncio.sleep(60.0)
    assert pool.bulkhead.held == 7
    for hog in hogs:
        hog.cancel()


@in_virtual_time
async def test_idle_tenants_are_forgotten() -> None:
    pool = Pool(2)
    for number in range(50):
        await pool.work(f"tenant-{number}", 0.1)
        await asyncio.sleep(60.0)
    assert len(pool.bulkhead._queue._tenants) <= 2


@in_virtual_time
async def test_slot_does_not_cost_more_with_a_thousand_tenants(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(100)
    for number in range(1000):
        await pool.work(f"tenant-{number}", 0.001)
    asked: list[TenantQueue] = []
    need = TenantQueue.need

    def noted(tenant: TenantQueue, now: float) -> float:
        asked.append(tenant)
        return need(tenant, now)

    monkeypatch.setattr(TenantQueue, "need", noted)
    await pool.work("tenant-500", 0.001)
    assert {tenant.tenant_id for tenant in asked} == {"tenant-500"}
