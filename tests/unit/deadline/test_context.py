"""A context has an owner and a deadline. It can be narrowed, never extended."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.virtual import in_virtual_time, now, with_seconds

from deadlinemesh.deadline import DeadlineContext, VirtualClock, current, current_or_none, entered, narrowed_after
from deadlinemesh.errors import DeadlineSpent, NoDeadline

CLOCK = VirtualClock(start=1000.0)


def ten_seconds(clock: VirtualClock = CLOCK) -> DeadlineContext:
    start = clock.monotonic()
    return DeadlineContext("acme", start + 10.0, "free", "f" * 32, "run-1", start, clock)


def test_context_is_immutable() -> None:
    context = ten_seconds()
    with pytest.raises(FrozenInstanceError):
        context.absolute_deadline = 5000.0  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        context.tenant_id = "bolt"  # type: ignore[misc]


def test_remaining_time_shrinks_to_zero() -> None:
    clock = VirtualClock()
    context = ten_seconds(clock)
    seen = []
    for _ in range(3):
        seen.append((context.remaining, context.elapsed, context.is_expired))
        clock.advance(6.0)
    assert seen == [(10.0, 0.0, False), (4.0, 6.0, False), (0.0, 12.0, True)]


def test_context_expires_at_the_instant_of_its_deadline() -> None:
    clock = VirtualClock()
    context = ten_seconds(clock)
    clock.advance(10.0)
    assert context.is_expired


@given(st.floats(-1e6, 1e6))
def test_tightening_never_gives_a_later_deadline(seconds: float) -> None:
    context = ten_seconds()
    for tightened in (context.tightened_after(seconds), context.tightened_to(CLOCK.monotonic() + seconds)):
        assert tightened.absolute_deadline == min(context.absolute_deadline, CLOCK.monotonic() + seconds)
        assert replace(tightened, absolute_deadline=context.absolute_deadline) == context


def test_tightening_past_the_deadline_changes_nothing() -> None:
    context = ten_seconds()
    assert context.tightened_after(11.0) is context
    assert context.tightened_to(context.absolute_deadline) is context


def test_tightened_context_counts_from_the_start_of_the_hop() -> None:
    clock = VirtualClock()
    context = ten_seconds(clock)
    clock.advance(3.0)
    tightened = context.tightened_after(2.0)
    assert (tightened.granted, tightened.elapsed, tightened.remaining) == (5.0, 3.0, 2.0)


def test_virtual_clock_refuses_to_go_back() -> None:
    with pytest.raises(ValueError, match=r"cannot go back by 1\.5 s"):
        VirtualClock().advance(-1.5)


def test_missing_context_raises_no_deadline_with_advice() -> None:
    assert current_or_none() is None
    with pytest.raises(NoDeadline, match="entered"):
        current()


def test_entered_context_is_current_in_its_block_only() -> None:
    outer, inner = ten_seconds(), ten_seconds().tightened_after(1.0)
    with entered(outer):
        with suppress(ZeroDivisionError), entered(inner):
            assert current() is inner
            raise ZeroDivisionError
        assert current() is outer
    assert current_or_none() is None


@in_virtual_time
async def test_tasks_see_only_the_context_of_their_tenant() -> None:
    seen: dict[str, set[str]] = {"acme": set(), "bolt": set()}

    async def work(tenant_id: str) -> None:
        with entered(with_seconds(5.0, tenant_id=tenant_id)):
            for _ in range(10):
                seen[tenant_id].add(current().tenant_id)
                await asyncio.sleep(0.1)
                seen[tenant_id].add(await asyncio.create_task(whose()))

    async def whose() -> str:
        await asyncio.sleep(0)
        return current().tenant_id

    await asyncio.gather(work("acme"), work("bolt"))
    assert seen == {"acme": {"acme"}, "bolt": {"bolt"}}


@in_virtual_time
async def test_tool_b_gets_2_s_after_tool_a_took_8_of_10() -> None:
    found: dict[str, float] = {}

    async def within_its_share(tool: Coroutine[Any, Any, None]) -> None:
        async with narrowed_after(30.0, "tool_call"):
            await tool

    async def tool_a() -> None:
        await asyncio.sleep(8.0)

    async def tool_b() -> None:
        found["left for B"] = current().remaining
        try:
            await asyncio.sleep(30.0)
        except asyncio.CancelledError:
            found["B cancelled at"] = now()
            raise

    with entered(with_seconds(10.0)):
        await tool_a()
        with pytest.raises(DeadlineSpent):
            await within_its_share(tool_b())
    assert found == pytest.approx({"left for B": 2.0, "B cancelled at": 10.0})
