"""A scope owns the task tree under it, and things such as streams. They end with it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable

import pytest
from tests.support.scopes import Hop, Stubborn, asleep
from tests.support.virtual import in_virtual_time, now

from deadlinemesh.deadline.scope import CANCEL_AGAIN_AFTER, current_scope
from deadlinemesh.errors import Cause, DeadlineSpent, Stopped


@in_virtual_time
async def test_task_tree_ends_at_the_exact_instant() -> None:
    ended: list[float] = []

    async def child(depth: int) -> None:
        if depth:
            asyncio.ensure_future(child(depth - 1))  # noqa: RUF006 # only the scope holds it
        try:
            await asleep()
        finally:
            ended.append(now())

    async def work() -> None:
        asyncio.ensure_future(child(2))  # noqa: RUF006
        await asleep()

    hop = Hop()
    with pytest.raises(DeadlineSpent):
        await hop.open(2.0).run(work())
    assert ended == [2.0, 2.0, 2.0]
    assert len(hop.scopes) == 0


@in_virtual_time
async def test_leftover_children_are_cancelled_at_a_normal_end() -> None:
    ended: list[float] = []

    async def child() -> None:
        try:
            await asleep()
        finally:
            ended.append(now())

    async def work() -> int:
        asyncio.ensure_future(child())  # noqa: RUF006
        await asyncio.sleep(1.0)
        return 42

    scope = Hop().open()
    assert await scope.run(work()) == 42
    assert (ended, scope.cause) == ([1.0], None)


@in_virtual_time
async def test_scope_waits_for_its_children_to_clean_up() -> None:
    closed: list[float] = []

    async def child() -> None:
        try:
            await asleep()
        finally:
            await asyncio.sleep(CANCEL_AGAIN_AFTER / 2)
            closed.append(now())

    async def work() -> None:
        asyncio.ensure_future(child())  # noqa: RUF006
        await asyncio.sleep(1.0)

    await Hop().open().run(work())
    assert closed == [pytest.approx(1.0 + CANCEL_AGAIN_AFTER / 2)]


@in_virtual_time
async def test_task_started_during_the_end_is_ended_too() -> None:
    ended: list[float] = []

    async def late_child() -> None:
        try:
            await asleep()
        finally:
            ended.append(now())

    async def work() -> None:
        try:
            await asleep()
        finally:
            asyncio.ensure_future(late_child())  # noqa: RUF006

    hop = Hop()
    with pytest.raises(DeadlineSpent):
        await hop.open(1.0).run(work())
    assert ended == [pytest.approx(1.0 + CANCEL_AGAIN_AFTER)]
    assert len(hop.scopes) == 0


@in_virtual_time
async def test_task_started_after_the_end_is_owned_and_ended() -> None:
    ended: list[float] = []

    async def late_child() -> None:
        try:
            await asleep()
        finally:
            ended.append(now())

    tasks: list[asyncio.Task[None]] = []

    async def work() -> None:
        # A callback runs in the context in force when it was scheduled.
        asyncio.get_running_loop().call_later(5.0, lambda: tasks.append(asyncio.ensure_future(late_child())))

    hop = Hop()
    await hop.open().run(work())
    assert len(hop.scopes) == 0
    await asyncio.sleep(5.0 + CANCEL_AGAIN_AFTER / 2)
    assert len(hop.scopes) == 1
    await hop.scopes.emptied()
    assert ended == [pytest.approx(5.0 + CANCEL_AGAIN_AFTER)]


@in_virtual_time
async def test_generator_collected_after_the_end_can_clean_up() -> None:
    cleaned: list[float] = []
    kept: list[AsyncIterator[int]] = []

    async def generate() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(CANCEL_AGAIN_AFTER / 2)
            cleaned.append(now())

    async def work() -> None:
        kept.append(generate())
        await anext(kept[0])

    hop = Hop()
    await hop.open().run(work())
    kept.clear()
    gc.collect()
    await asyncio.sleep(1.0)
    assert cleaned == [pytest.approx(CANCEL_AGAIN_AFTER / 2)]
    assert len(hop.scopes) == 0


@in_virtual_time
async def test_scopes_in_one_loop_end_only_their_own_children() -> None:
    ended: list[tuple[str, float]] = []

    async def child(name: str) -> None:
        try:
            await asleep()
        finally:
            ended.append((name, now()))

    async def work(name: str) -> None:
        asyncio.ensure_future(child(name))  # noqa: RUF006
        await asleep()

    hop = Hop()
    await asyncio.gather(hop.open(1.0).run(work("a")), hop.open(3.0).run(work("b")), return_exceptions=True)
    assert ended == [("a", 1.0), ("b", 3.0)]


@in_virtual_time
async def test_owned_thing_is_closed_at_a_normal_end() -> None:
    closed: list[float] = []

    async def work() -> int:
        scope = current_scope()
        assert scope is not None
        scope.own(lambda: closed.append(now()))
        await asyncio.sleep(1.0)
        return 42

    assert await Hop().open().run(work()) == 42
    assert closed == [1.0]


@pytest.mark.parametrize("cause", [Cause.DEADLINE_SPENT, Cause.CLIENT_CANCELLED])
@in_virtual_time
async def test_thing_owned_during_a_stop_is_closed_too(cause: Cause) -> None:
    scope = Hop().open()
    closed: list[float] = []

    async def work() -> None:
        try:
            await asyncio.sleep(3600.0)
        finally:
            scope.own(lambda: closed.append(now()))

    asyncio.get_running_loop().call_later(1.0, scope.stop, cause)
    with pytest.raises(Stopped):
        await scope.run(work())
    assert closed == [1.0]


@in_virtual_time
async def test_stubborn_work_does_not_delay_closing() -> None:
    closed: list[float] = []
    stubborn = Stubborn()

    async def work() -> None:
        scope = current_scope()
        assert scope is not None
        scope.own(lambda: closed.append(now()))
        await stubborn()

    asyncio.get_running_loop().call_later(2.0, setattr, stubborn, "let_go", True)
    with pytest.raises(DeadlineSpent):
        await Hop().open(1.0).run(work())
    assert closed == [1.0]


@in_virtual_time
async def test_disowned_thing_is_not_closed() -> None:
    closed: list[float] = []

    async def work() -> None:
        scope = current_scope()
        assert scope is not None
        disown = scope.own(lambda: closed.append(now()))
        disown()
        disown()

    await Hop().open().run(work())
    assert closed == []


@in_virtual_time
async def test_failing_closer_does_not_stop_the_others() -> None:
    closed: list[float] = []
    ended: list[float] = []

    def fails() -> None:
        raise OSError("already closed")

    async def child() -> None:
        try:
            await asleep()
        finally:
            ended.append(now())

    async def work() -> None:
        scope = current_scope()
        assert scope is not None
        closers: list[Callable[[], object]] = [fails, lambda: closed.append(now()), fails]
        for close in closers:
            scope.own(close)
        asyncio.ensure_future(child())  # noqa: RUF006
        await asleep()

    hop = Hop()
    with pytest.raises(DeadlineSpent):
        await hop.open(1.0).run(work())
    assert (closed, ended, len(hop.scopes)) == ([1.0], [1.0], 0)
