"""A narrowed block ends at its exact instant, and never takes another cancel for its own."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import pytest
from tests.support.virtual import in_virtual_time, now, with_seconds

from deadlinemesh.deadline import Narrowed, current, current_or_none, entered, narrowed_after, narrowed_at
from deadlinemesh.deadline.scope import CANCEL_AGAIN_AFTER
from deadlinemesh.errors import DeadlineSpent, NoDeadline

T = TypeVar("T")


async def asleep() -> None:
    await asyncio.get_running_loop().create_future()


async def within(block: Narrowed, work: Coroutine[Any, Any, T]) -> T:
    async with block:
        return await work


@in_virtual_time
async def test_block_without_a_context_raises_no_deadline() -> None:
    with pytest.raises(NoDeadline):
        narrowed_after(1.0)
    with pytest.raises(NoDeadline):
        narrowed_at(1.0)


@in_virtual_time
async def test_quick_block_leaves_no_trace() -> None:
    with entered(with_seconds(10.0)) as context:
        async with narrowed_after(2.0) as block:
            assert current() is block.context
            assert current().remaining == 2.0
            await asyncio.sleep(1.0)
        assert current() is context
        assert not block.expired
        await asyncio.sleep(5.0)  # the block's timer is gone too


@in_virtual_time
async def test_block_ends_at_its_exact_instant_and_names_its_phase() -> None:
    with entered(with_seconds(10.0)):
        block = narrowed_at(3.0, "tool_call")
        with pytest.raises(DeadlineSpent, match="tool_call") as raised:
            await within(block, asleep())
        assert (now(), block.expired, raised.value.phase) == (3.0, True, "tool_call")


@in_virtual_time
async def test_block_cannot_outlast_the_current_deadline() -> None:
    with entered(with_seconds(1.0)):
        with pytest.raises(DeadlineSpent):
            await within(narrowed_after(60.0), asleep())
        assert now() == 1.0


@in_virtual_time
async def test_expired_block_ends_at_its_first_wait() -> None:
    with entered(with_seconds(1.0)):
        await asyncio.sleep(2.0)
        with pytest.raises(DeadlineSpent):
            await within(narrowed_after(5.0), asleep())
        assert now() == 2.0


@in_virtual_time
async def test_swallowed_cancel_is_repeated_until_the_block_ends() -> None:
    async def swallow_three() -> None:
        for _ in range(3):
            with suppress(asyncio.CancelledError):
                await asleep()
        await asleep()

    with entered(with_seconds(10.0)), pytest.raises(DeadlineSpent):
        await within(narrowed_after(1.0), swallow_three())
    assert now() == pytest.approx(1.0 + 3 * CANCEL_AGAIN_AFTER)


@in_virtual_time
async def test_block_may_finish_despite_its_cancel() -> None:
    with entered(with_seconds(10.0)):
        async with narrowed_after(1.0) as block:
            with pytest.raises(asyncio.CancelledError):
                await asleep()
        assert block.expired
        await asyncio.sleep(1.0)  # no cancel of the block is left
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


@in_virtual_time
async def test_cleanup_error_is_chained_to_deadline_spent() -> None:
    async def cleans_up_badly() -> None:
        try:
            await asleep()
        except asyncio.CancelledError:
            raise LookupError from None

    with entered(with_seconds(10.0)), pytest.raises(DeadlineSpent) as raised:
        await within(narrowed_after(1.0), cleans_up_badly())
    assert isinstance(raised.value.__cause__, LookupError)


@in_virtual_time
async def test_error_in_time_is_raised_unchanged() -> None:
    async def fails() -> None:
        raise LookupError

    with entered(with_seconds(10.0)), pytest.raises(LookupError):
        await within(narrowed_after(1.0), fails())


@in_virtual_time
async def test_outside_cancel_is_not_taken_for_the_blocks_own() -> None:
    async def work() -> None:
        with entered(with_seconds(10.0)):
            async with narrowed_after(5.0):
                await asleep()

    task = asyncio.create_task(work())
    await asyncio.sleep(1.0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert now() == 1.0


@in_virtual_time
async def test_swallowed_outside_cancel_wins_over_the_blocks_own() -> None:
    async def work() -> None:
        with entered(with_seconds(10.0)):
            async with narrowed_after(5.0):
                try:
                    await asleep()
                except asyncio.CancelledError:
                    await asleep()

    task = asyncio.create_task(work())
    await asyncio.sleep(1.0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert now() == 5.0


@in_virtual_time
async def test_expired_block_of_two_nested_ones_raises() -> None:
    with entered(with_seconds(10.0)):
        async with narrowed_after(5.0, "outer") as outer:
            with pytest.raises(DeadlineSpent, match="inner"):
                await within(narrowed_after(2.0, "inner"), asleep())
            assert now() == 2.0
            assert current() is outer.context

        async def inner() -> None:
            async with narrowed_after(8.0, "inner") as block:
                assert block.context.remaining == 3.0
                await asleep()

        with pytest.raises(DeadlineSpent, match="outer"):
            await within(narrowed_after(3.0, "outer"), inner())
    assert now() == 5.0
    assert current_or_none() is None


@in_virtual_time
async def test_asyncio_timeout_in_a_block_stays_a_timeout_error() -> None:
    with entered(with_seconds(10.0)):
        async with narrowed_after(5.0) as block:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asleep(), 1.0)
            await asyncio.sleep(1.0)
        assert not block.expired


@in_virtual_time
async def test_asyncio_timeout_around_a_block_raises_timeout_error() -> None:
    async def caller() -> None:
        async with asyncio.timeout(1.0):
            await within(narrowed_after(5.0), asleep())

    with entered(with_seconds(10.0)), pytest.raises(TimeoutError):
        await caller()
    assert now() == 1.0


@in_virtual_time
async def test_failed_task_group_in_a_block_raises_its_own_error() -> None:
    async def fails() -> None:
        await asyncio.sleep(1.0)
        raise LookupError

    async def both() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fails())
            group.create_task(asleep())

    with entered(with_seconds(10.0)):
        async with narrowed_after(5.0) as block:
            with pytest.raises(ExceptionGroup) as raised:
                await both()
        assert isinstance(raised.value.exceptions[0], LookupError)
        assert not block.expired
