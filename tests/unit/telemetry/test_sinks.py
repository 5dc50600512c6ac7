"""What happens is told to every sink, and where that can wait, not while runs are ending."""

from __future__ import annotations

import asyncio

from tests.support.virtual import in_virtual_time

from deadlinemesh.telemetry import (
    CallStarted,
    CountingSink,
    Event,
    LoopLagged,
    MalformedRemaining,
    OrphanReported,
    WhenIdle,
)


@in_virtual_time
async def test_events_that_can_wait_reach_every_sink_in_order_and_at_the_latest_with_a_flush() -> None:
    first, second = CountingSink(), CountingSink()
    told = WhenIdle([first, second])
    starts = [CallStarted("hop-a", "/x", f"run-{number}", 0.0, 1.0) for number in range(3)]
    told.record(starts[0])
    told.record(starts[1])
    assert first.events == []
    await asyncio.sleep(1.0)
    assert first.events == second.events == starts[:2]
    told.record(starts[2])
    told.flush()
    assert first.events == second.events == starts


@in_virtual_time
async def test_what_is_wrong_is_told_at_once() -> None:
    sink = CountingSink()
    told = WhenIdle([sink])
    wrong: list[Event] = [
        OrphanReported("hop-a", "acme", "run-1", "clings", 0.25),
        LoopLagged("hop-a", "", "", 1.0, "here"),
        MalformedRemaining("hop-a", "/x", "soon"),
    ]
    for event in wrong:
        told.record(event)
    assert sink.events == wrong
