"""A bulkhead shares out its slots in time: fairly, by deadline, without losing one, and refusing what could not be of use."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import pytest
from tests.support.virtual import in_virtual_time, now, with_seconds

from deadlinemesh.admission import Bulkhead, Lease, Share, Wait, WaitEnd
from deadlinemesh.admission.queue import TenantQueue
from deadlinemesh.deadline import Scopes, entered
from deadlinemesh.errors import (
    ClientCancelled,
    DeadlineSpent,
    DeadlineSpentUpstream,
    Doomed,
    Draining,
    InternalFailure,
    NoDeadline,
    Shed,
    Stopped,
    UpstreamFailed,
    UpstreamRefused,
)
from deadlinemesh.testing import virtual_time

SHARES = {"free": Share(1, band=1), "big": Share(3, band=1), "first": Share(1, band=0)}


class Pool:
    """A bulkhead on virtual time, and the order in which it let work begin."""

    def __init__(self, limit: int, **options: Any) -> None:
        self.waits: list[Wait] = []
        self.begun: list[str] = []
        self.bulkhead = Bulkhead(
            "pool", limit, shares=SHARES, clock=virtual_time.clock(), on_wait=self.waits.append, **options
        )

    async def work(
        self, tenant: str, takes: float, *, seconds: float = 1000.0, tier: str = "free", name: str = "", kind: str = ""
    ) -> float:
        """Hold a slot for `takes` seconds; gives the wait."""
        with entered(replace(with_seconds(seconds, tenant_id=tenant), tier=tier)):
            async with self.bulkhead.slot(kind) as slot:
                self.begun.append(name or tenant)
                await asyncio.sleep(takes)
                return slot.waited

    async def keep_busy(self, tenant: str, takes: float) -> None:
        """Work without end."""
        while True:
            await self.work(tenant, takes)

    async def end(self, error: type[BaseException], *, after: float) -> None:
        """Hold a slot for so many seconds, and end with an error."""
        with entered(with_seconds(1000.0)), suppress(error):
            async with self.bulkhead.slot():
                await asyncio.sleep(after)
                raise error("so it ends")

    async def all(self, *works: Awaitable[float]) -> list[float]:
        return [round(wait, 6) for wait in await asyncio.gather(*works)]

    async def taught(self, takes: float, times: int = 10, tenant: str = "acme", kind: str = "") -> Pool:
        for _ in range(times):
            await self.work(tenant, takes, kind=kind)
        self.begun.clear()
        self.waits.clear()
        return self


# --- the line ---


@in_virtual_time
async def test_one_tenants_claims_are_served_one_after_the_other_and_each_is_told_its_wait() -> None:
    pool = Pool(1)
    assert await pool.all(*(pool.work("acme", 1.0) for _ in range(4))) == [0.0, 1.0, 2.0, 3.0]
    assert [(wait.end, round(wait.seconds, 6)) for wait in pool.waits] == [
        (WaitEnd.GRANTED, n) for n in (0.0, 1.0, 2.0, 3.0)
    ]
    assert (pool.bulkhead.held, pool.bulkhead.waiting) == (0, 0)


@in_virtual_time
async def test_inside_a_tenant_the_earliest_deadline_goes_first() -> None:
    pool = Pool(1)
    claims = [("now", 10.0), ("late", 90.0), ("soon", 20.0), ("later", 95.0), ("sooner", 15.0)]
    await pool.all(*(pool.work("acme", 1.0, seconds=seconds, name=name) for name, seconds in claims))
    assert pool.begun == ["now", "sooner", "soon", "late", "later"]


@in_virtual_time
async def test_between_tenants_slot_seconds_are_shared_by_weight() -> None:
    pool = Pool(1)
    await pool.taught(1.0, tenant="acme")
    works = [pool.work("acme", 1.0) for _ in range(40)] + [pool.work("zenith", 1.0, tier="big") for _ in range(40)]
    await pool.all(*works)
    assert pool.begun[:40].count("zenith") == pytest.approx(30, abs=2)


@in_virtual_time
async def test_a_tenant_with_slow_calls_gets_fewer_of_them() -> None:
    pool = Pool(1)
    await pool.all(*(pool.work("slow", 4.0) for _ in range(20)), *(pool.work("quick", 1.0) for _ in range(20)))
    assert pool.begun[:15].count("quick") == pytest.approx(12, abs=1)


@in_virtual_time
async def test_idleness_saves_nothing_up() -> None:
    pool = Pool(1)
    await pool.all(*(pool.work("busy", 1.0) for _ in range(50)))
    pool.begun.clear()
    await pool.all(*(pool.work(tenant, 1.0) for _ in range(20) for tenant in ("busy", "fresh")))
    assert pool.begun[:20].count("busy") == pytest.approx(10, abs=1)


@in_virtual_time
async def test_a_higher_band_goes_first_and_the_lower_keeps_the_part_that_guards_it() -> None:
    pool = Pool(1, guard=0.1)
    works = [pool.work("grand", 1.0, tier="first") for _ in range(60)] + [pool.work("small", 1.0) for _ in range(20)]
    await pool.all(*works)
    assert pool.begun[:51].count("small") == 5


@in_virtual_time
async def test_without_a_guard_the_lower_band_waits_for_the_higher_to_be_idle() -> None:
    pool = Pool(1, guard=0.0)
    await pool.all(*(pool.work("grand", 1.0, tier="first") for _ in range(30)), pool.work("small", 1.0))
    assert pool.begun[-1] == "small"


@in_virtual_time
async def test_a_turn_that_guards_the_lower_band_is_not_spent_on_a_claim_that_is_not_begun() -> None:
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
async def test_claims_of_the_higher_band_that_are_not_begun_give_the_lower_no_turns() -> None:
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
async def test_who_comes_later_in_a_lower_band_gets_its_part_of_the_turns_that_guard_the_band() -> None:
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
async def test_a_tenant_that_goes_over_to_another_band_begins_there_as_a_newcomer_does() -> None:
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


# --- one tenant never holds everything ---


@in_virtual_time
async def test_the_last_free_slot_is_for_whoever_comes_next() -> None:
    pool = Pool(4)
    hogs = [asyncio.ensure_future(pool.work("hog", 500.0)) for _ in range(10)]
    await asyncio.sleep(1.0)
    assert pool.bulkhead.held == 3
    assert await pool.work("acme", 1.0) == 0.0
    for hog in hogs:
        hog.cancel()


@in_virtual_time
async def test_a_tenant_alone_at_a_single_slot_has_it() -> None:
    assert await Pool(1).work("acme", 1.0) == 0.0


@in_virtual_time
async def test_what_a_tenant_lately_needed_is_kept_free_for_it() -> None:
    pool = Pool(8)
    await pool.all(*(pool.work("acme", 1.0) for _ in range(3)))
    hogs = [asyncio.ensure_future(pool.work("hog", 500.0)) for _ in range(20)]
    await asyncio.sleep(1.0)
    assert pool.bulkhead.held == 5
    assert await pool.all(*(pool.work("acme", 1.0) for _ in range(3))) == [0.0, 0.0, 0.0]
    for hog in hogs:
        hog.cancel()


@in_virtual_time
async def test_what_nobody_needs_any_more_is_lent_without_another_claim() -> None:
    pool = Pool(8)
    await pool.all(*(pool.work("acme", 1.0) for _ in range(3)))
    hogs = [asyncio.ensure_future(pool.work("hog", 500.0)) for _ in range(20)]
    await asyncio.sleep(60.0)
    assert pool.bulkhead.held == 7
    for hog in hogs:
        hog.cancel()


@in_virtual_time
async def test_tenants_that_are_gone_are_forgotten() -> None:
    pool = Pool(2)
    for number in range(50):
        await pool.work(f"tenant-{number}", 0.1)
        await asyncio.sleep(60.0)
    assert len(pool.bulkhead._queue._tenants) <= 2


@in_virtual_time
async def test_a_slot_for_one_tenant_takes_no_longer_for_the_thousand_others(monkeypatch: pytest.MonkeyPatch) -> None:
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


# --- refusals ---


@in_virtual_time
async def test_work_that_has_less_time_than_its_kind_takes_is_doomed_before_it_starts() -> None:
    pool = await Pool(2).taught(2.0)
    with pytest.raises(
        Doomed, match=r"500 ms are left for pool, and nine in ten .* for this tenant took more than 2000 ms"
    ):
        await pool.work("acme", 2.0, seconds=0.5)
    assert pool.begun == []
    assert [wait.end for wait in pool.waits] == [WaitEnd.DOOMED]


@in_virtual_time
async def test_kinds_are_not_judged_by_one_another() -> None:
    pool = await Pool(2).taught(2.0, kind="slow")
    assert await pool.work("acme", 0.1, seconds=0.5, kind="quick") == 0.0


@in_virtual_time
async def test_tenants_are_not_judged_by_one_another() -> None:
    pool = await Pool(2).taught(2.0, tenant="slow")
    assert await pool.work("acme", 0.1, seconds=0.5) == 0.0


@in_virtual_time
async def test_few_are_not_enough_to_judge_by() -> None:
    pool = await Pool(2).taught(2.0, times=7)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await pool.work("acme", 2.0, seconds=0.5)


@in_virtual_time
async def test_after_a_while_without_news_one_is_let_through_to_see() -> None:
    pool = await Pool(2).taught(2.0)
    await asyncio.sleep(4.5)
    scope = Scopes("hop-a").open(with_seconds(0.5))
    with pytest.raises(DeadlineSpent):
        await scope.run(pool.work("acme", 2.0, seconds=0.5))
    with pytest.raises(Doomed):
        await pool.work("acme", 0.1, seconds=0.5)


@in_virtual_time
async def test_each_piece_that_shows_a_recovery_lets_another_through_until_it_is_believed() -> None:
    pool = await Pool(2).taught(20.0, times=64)
    refused_at = []
    for _ in range(300):
        await asyncio.sleep(1.0)
        try:
            await pool.work("acme", 0.1, seconds=10.0)
        except Doomed:
            refused_at.append(now() - 64 * 20.0)
    assert max(refused_at) < 42.0  # none was let through before, to see


@in_virtual_time
async def test_one_lucky_piece_lets_one_other_through_and_no_more() -> None:
    pool = await Pool(20).taught(2.0)
    await pool.work("acme", 0.1)
    claims = [asyncio.ensure_future(pool.work("acme", 0.1, seconds=0.5)) for _ in range(10)]
    ended = await asyncio.gather(*claims, return_exceptions=True)
    assert sum(isinstance(one, Doomed) for one in ended) == 9


@in_virtual_time
async def test_a_recovery_is_believed_as_soon_though_others_keep_every_slot_busy() -> None:
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
async def test_a_recovery_is_believed_though_other_work_of_the_tenant_always_waits() -> None:
    pool = await Pool(1).taught(20.0, kind="slow")
    await pool.all(*(pool.work("acme", 1.0) for _ in range(30)))
    crowd = [asyncio.ensure_future(pool.keep_busy("acme", 1.0)) for _ in range(3)]
    await asyncio.sleep(41.5)
    assert await pool.work("acme", 0.1, seconds=10.0, kind="slow") < 1.0
    for one in crowd:
        one.cancel()


@in_virtual_time
async def test_of_those_that_wait_to_see_only_one_is_begun_in_vain() -> None:
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
async def test_who_leaves_before_it_could_see_leaves_that_to_the_next() -> None:
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
async def test_who_has_waited_to_see_is_not_begun_with_less_than_the_last_piece_took() -> None:
    pool = await Pool(1).taught(20.0)
    await pool.work("acme", 2.0)
    holder = asyncio.ensure_future(pool.work("other", 7.0))
    await asyncio.sleep(0)
    with pytest.raises(Shed, match="took longer than expected"):
        await pool.work("acme", 2.0, seconds=8.0)
    assert pool.begun == ["acme", "other"]
    await holder


@in_virtual_time
async def test_the_first_to_wait_of_a_tenant_without_a_slot_is_not_refused_for_how_long_it_once_held_one() -> None:
    pool = await (await Pool(1).taught(1.0, tenant="other")).taught(20.0, kind="slow")
    crowd = [asyncio.ensure_future(pool.keep_busy("other", 1.0)) for _ in range(2)]
    await asyncio.sleep(0)
    works = [asyncio.ensure_future(pool.work("acme", 0.1, seconds=10.0, kind="new")) for _ in range(3)]
    ended = await asyncio.gather(*works, return_exceptions=True)
    assert [type(one) for one in ended] == [float, Shed, Shed]
    for one in crowd:
        one.cancel()


@in_virtual_time
async def test_work_that_is_of_use_before_it_ends_needs_only_the_time_until_then() -> None:
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
async def test_a_wait_that_would_spend_the_deadline_is_not_begun_and_says_when_to_come_again() -> None:
    pool = await Pool(1).taught(1.0)
    held = [asyncio.ensure_future(pool.work("acme", 1.0, seconds=15.0)) for _ in range(12)]
    await asyncio.sleep(0)
    with pytest.raises(Shed, match="a wait of about 11500 ms") as refused:
        await pool.work("acme", 1.0, seconds=15.0)
    assert refused.value.retry_after == pytest.approx(11.5 + 1.0 - 0.8 * 15.0)
    assert max(await asyncio.gather(*held)) == pytest.approx(11.0)


@in_virtual_time
async def test_an_earlier_deadline_need_not_wait_for_the_later_ones_before_it() -> None:
    pool = await Pool(1).taught(1.0)
    held = [asyncio.ensure_future(pool.work("acme", 1.0, seconds=60.0)) for _ in range(12)]
    await asyncio.sleep(0)
    assert await pool.work("acme", 1.0, seconds=3.0) == pytest.approx(1.0)
    await asyncio.gather(*held)


@in_virtual_time
async def test_a_tenants_line_is_bounded_and_another_tenants_is_not_the_longer_for_it() -> None:
    pool = Pool(1, most_waiting=5)
    crowd = [asyncio.ensure_future(pool.work("crowd", 1.0)) for _ in range(50)]
    await asyncio.sleep(0)
    assert await pool.work("acme", 1.0) == pytest.approx(1.0)
    ended = await asyncio.gather(*crowd, return_exceptions=True)
    assert sum(isinstance(one, Shed) for one in ended) == 44
    assert all(one.retry_after for one in ended if isinstance(one, Shed))


@in_virtual_time
async def test_a_claim_that_waited_longer_than_expected_is_not_begun_to_be_cut() -> None:
    pool = await Pool(1).taught(1.0)
    slow = asyncio.ensure_future(pool.work("acme", 2.2))
    await asyncio.sleep(0)
    with pytest.raises(Shed, match="took longer than expected"):
        await pool.work("acme", 1.0, seconds=3.0)
    await slow
    assert pool.begun == ["acme"]


@in_virtual_time
async def test_a_claim_whose_time_passes_between_its_grant_and_its_turn_is_not_begun() -> None:
    pool = Pool(1)

    async def hold_then_compute() -> None:
        await pool.work("acme", 1.0)
        virtual_time.clock().advance(0.6)  # the slot is given on, but the loop cannot come to who has it

    holder = asyncio.ensure_future(hold_then_compute())
    await asyncio.sleep(0)
    late = asyncio.ensure_future(pool.work("acme", 1.0, seconds=1.5))
    await holder
    with pytest.raises(Shed, match="took longer than expected"):
        await late
    assert (pool.begun, pool.bulkhead.held) == (["acme"], 0)


@in_virtual_time
async def test_at_twice_its_capacity_a_bulkhead_does_nothing_but_work_that_is_done_in_time() -> None:
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


# --- nothing is lost ---


@pytest.mark.parametrize("cancel_after", [0.0, 0.5, 1.0])
@in_virtual_time
async def test_a_waiter_that_leaves_takes_no_slot_with_it(cancel_after: float) -> None:
    """At 1.0 the cancel meets the very moment in which the waiter is given its slot."""
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
async def test_a_waiter_whose_deadline_passes_is_gone_at_that_instant() -> None:
    pool = Pool(1)
    holder = asyncio.ensure_future(pool.work("acme", 5.0))
    await asyncio.sleep(0)
    scope = Scopes("hop-a").open(with_seconds(2.0))
    with pytest.raises(DeadlineSpent):
        await scope.run(pool.work("acme", 1.0, seconds=2.0))
    assert (now(), pool.bulkhead.waiting) == (pytest.approx(2.0), 0)
    await holder


@in_virtual_time
async def test_a_holder_that_fails_gives_its_slot_back_and_its_time_teaches_nothing() -> None:
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


@pytest.mark.parametrize("failure", [UpstreamFailed, UpstreamRefused, InternalFailure, Shed, Doomed])
@in_virtual_time
async def test_how_long_an_upstream_took_to_fail_is_no_service_time(failure: type[Stopped]) -> None:
    pool = await Pool(2).taught(1.0)
    for _ in range(8):
        await pool.end(failure, after=5.0)
    assert await pool.work("acme", 1.0, seconds=3.0) == 0.0


@pytest.mark.parametrize(
    "cut", [asyncio.CancelledError, DeadlineSpent, DeadlineSpentUpstream, ClientCancelled, Draining]
)
@in_virtual_time
async def test_work_that_is_cut_is_known_to_take_at_least_as_long(cut: type[BaseException]) -> None:
    pool = await Pool(2).taught(1.0)
    for _ in range(8):
        await pool.end(cut, after=5.0)
    with pytest.raises(Doomed):
        await pool.work("acme", 1.0, seconds=3.0)


@in_virtual_time
async def test_a_slot_whose_holder_is_lost_is_taken_back_after_its_deadline() -> None:
    pool = Pool(1)
    with entered(with_seconds(2.0)):
        lost: Lease = await pool.bulkhead.acquire()
    waited = await pool.work("acme", 1.0)
    assert 2.25 <= waited <= 2.75
    lost.release()
    assert pool.bulkhead.held == 0


@in_virtual_time
async def test_a_lost_slot_is_taken_back_though_nobody_is_let_to_wait_for_it() -> None:
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
async def test_a_line_that_never_empties_keeps_nothing_of_a_claim_that_is_gone() -> None:
    class Mine:
        """What a call may have in its context."""

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
async def test_giving_a_slot_back_twice_frees_one() -> None:
    pool = Pool(2)
    with entered(with_seconds(10.0)):
        first, second = await pool.bulkhead.acquire(), None
        first.release()
        first.release()
        second = await pool.bulkhead.acquire()
    assert pool.bulkhead.held == 1
    second.release()


@in_virtual_time
async def test_there_is_no_slot_without_a_deadline() -> None:
    with pytest.raises(NoDeadline):
        await Pool(1).bulkhead.acquire()


@pytest.mark.parametrize("options", [{"limit": 0}, {"limit": 1, "guard": 1.0}, {"limit": 1, "most_waiting": -1}])
def test_a_bulkhead_that_could_not_work_is_not_made(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="pool: the limit must be positive"):
        Bulkhead("pool", **options)


# --- other bounds ---


@in_virtual_time
async def test_a_larger_limit_lets_those_that_wait_begin_at_once_and_a_smaller_one_takes_nothing_away() -> None:
    pool = Pool(1)
    works = [asyncio.ensure_future(pool.work("acme", 1.0)) for _ in range(4)]
    await asyncio.sleep(0.5)
    pool.bulkhead.resize(3, shares=SHARES)
    assert (pool.bulkhead.held, pool.bulkhead.waiting) == (2, 2)  # the last free slot is for whoever comes next
    pool.bulkhead.resize(1, shares=SHARES)
    assert (pool.bulkhead.held, pool.bulkhead.waiting) == (2, 2)
    assert [round(wait, 6) for wait in await asyncio.gather(*works)] == [0.0, 0.5, 1.5, 2.5]


@in_virtual_time
async def test_bounds_that_cannot_be_are_refused_and_the_old_ones_stay() -> None:
    pool = Pool(2)
    with pytest.raises(ValueError, match="pool: the limit must be positive"):
        pool.bulkhead.resize(0)
    assert pool.bulkhead.limit == 2
