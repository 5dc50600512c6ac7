"""A hold delays cancellation of a scope's own task, for awaits that must finish."""

from __future__ import annotations

import asyncio

import pytest
from tests.support.scopes import Hop, asleep
from tests.support.virtual import in_virtual_time, now

from deadlinemesh.errors import ClientCancelled, DeadlineSpent


@in_virtual_time
async def test_hold_delays_a_cancel_until_let_go() -> None:
    scope, seen = Hop().open(1.0), list[str]()

    async def work() -> None:
        assert scope.hold()
        await asyncio.sleep(5.0)
        seen.append("not cut")
        assert scope.let_go()
        await asyncio.sleep(0)
        seen.append("never")

    with pytest.raises(DeadlineSpent):
        await scope.run(work())
    assert (seen, now()) == (["not cut"], pytest.approx(5.0))


@in_virtual_time
async def test_children_are_cut_during_a_hold() -> None:
    scope, cut = Hop().open(1.0), list[float]()

    async def child() -> None:
        try:
            await asleep()
        finally:
            cut.append(now())

    async def work() -> None:
        children = [asyncio.create_task(child())]
        scope.hold()
        await asyncio.sleep(5.0)
        scope.let_go()
        await asyncio.wait(children)

    with pytest.raises(DeadlineSpent):
        await scope.run(work())
    assert cut == [1.0]


@in_virtual_time
async def test_callers_cancel_is_delayed_and_not_lost() -> None:
    scope, seen = Hop().open(), list[str]()

    async def work() -> None:
        scope.hold()
        await asyncio.sleep(1.0)
        seen.append("not cut")
        scope.let_go()
        await asleep()

    task = asyncio.create_task(scope.run(work()))
    await asyncio.sleep(0.5)
    task.cancel()
    with pytest.raises(ClientCancelled):
        await task
    assert (seen, now(), scope.caller_left) == (["not cut"], 1.0, True)


@in_virtual_time
async def test_inner_hold_delays_the_outer_scopes_cancel() -> None:
    hop = Hop()
    outer, inner = hop.open(1.0), hop.open(9.0)

    async def work() -> None:
        inner.hold()
        await asyncio.sleep(5.0)
        inner.let_go()
        await asleep()

    with pytest.raises(DeadlineSpent):
        await outer.run(inner.run(work()))
    assert now() == pytest.approx(5.0)


@in_virtual_time
async def test_let_go_without_a_cancel_changes_nothing() -> None:
    scope = Hop().open()

    async def work() -> int:
        assert scope.hold()
        await asyncio.sleep(1.0)
        assert not scope.let_go()
        await asyncio.sleep(1.0)
        return 42

    assert await scope.run(work()) == 42


@in_virtual_time
async def test_only_the_scopes_own_task_can_hold() -> None:
    scope = Hop().open()

    async def child() -> bool:
        return scope.hold()

    async def work() -> bool:
        return await asyncio.create_task(child())

    assert not scope.hold()
    assert not await scope.run(work())
    assert not scope.hold()
