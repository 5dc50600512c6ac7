"""The instant of a grant, and the slots that are kept free for others."""

from __future__ import annotations

import asyncio

import pytest
from tests.support.virtual import in_virtual_time, with_seconds

from deadlinemesh.admission import Bulkhead, Share
from deadlinemesh.admission.queue import FairQueue
from deadlinemesh.deadline import entered
from deadlinemesh.testing import virtual_time


def bulkhead(limit: int) -> Bulkhead:
    return Bulkhead("pool", limit, clock=virtual_time.clock())


@in_virtual_time
async def test_waiter_cancelled_at_its_grant_frees_the_slot() -> None:
    pool = bulkhead(1)
    with entered(with_seconds(100.0)):
        holder = await pool.acquire()
        waiter = asyncio.create_task(pool.acquire())
        await asyncio.sleep(1.0)
        holder.release()
        assert pool.held == 1, "the waiter has the slot, and has not run yet"
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert pool.held == 0
        (await pool.acquire()).release()


@in_virtual_time
async def test_at_most_half_of_the_slots_are_kept_for_others() -> None:
    pool = bulkhead(10)
    for number in range(9):  # each has lately needed one, and may come back
        with entered(with_seconds(100.0, tenant_id=f"other-{number}")):
            (await pool.acquire()).release()
    leases = []
    with entered(with_seconds(100.0, tenant_id="busy")):
        for _ in range(10):
            asking = asyncio.create_task(pool.acquire())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            if not asking.done():
                asking.cancel()
                break
            leases.append(asking.result())
    assert len(leases) == 5
    for lease in leases:
        lease.release()


def test_idle_tenant_keeps_its_overuse() -> None:
    queue, share = FairQueue(0.1), Share()
    steady, greedy = queue.tenant("steady", share, 0.0), queue.tenant("greedy", share, 0.0)
    queue.begin(steady, 1.0)
    queue.begin(greedy, 100.0)
    queue.end(greedy, 100.0, 100.0)
    queue.tenant("newcomer", share, 1000.0)  # tenants that are idle by now are forgotten
    assert queue.tenant("greedy", share, 1000.0).virtual_time == pytest.approx(100.0)
