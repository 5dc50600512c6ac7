"""What happens is told to every sink, and where that can wait, not while runs are ending."""

from __future__ import annotations

import asyncio

from tests.virtual import in_virtual_time

from deadlinemesh.telemetry import CountingSink, LoopLagged, WhenIdle


@in_virtual_time
async def test_events_that_can_wait_reach_every_sink_in_order_and_at_the_latest_with_a_flush() -> None:
    first, second = CountingSink(), CountingSink()
    told = WhenIdle([first, second])
    lags = [LoopLagged("hop-a", "", "", float(number), "here") for number in range(3)]
    told.record(lags[0])
    told.record(lags[1])
    assert first.events == []
    await asyncio.sleep(1.0)
    assert first.events == second.events == lags[:2]
    told.record(lags[2])
    told.flush()
    assert first.events == second.events == lags
