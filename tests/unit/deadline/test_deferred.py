"""Deferred work is done in order, in small batches, while the event loop is calm."""

from __future__ import annotations

import asyncio
import weakref
from contextvars import ContextVar
from typing import Any

import pytest
from tests.support.virtual import in_virtual_time, now

from deadlinemesh.deadline import Deferred
from deadlinemesh.testing import virtual_time


@in_virtual_time
async def test_deferred_work_is_done_once_in_order_and_later() -> None:
    deferred, done = Deferred(), list[int]()
    for number in range(100):
        deferred(done.append, number)
    assert done == []
    await asyncio.sleep(1.0)
    assert done == list(range(100))
    deferred(done.append, 100)
    await asyncio.sleep(1.0)
    assert done[-1] == 100


@in_virtual_time
async def test_batches_are_small_and_grow_with_the_queue() -> None:
    deferred, instants = Deferred(), dict[float, int]()

    def note() -> None:
        instants[now()] = instants.get(now(), 0) + 1

    for _ in range(100):
        deferred(note)
    await asyncio.sleep(1.0)
    assert list(instants.values()) == [16, 16, 16, 16, 16, 16, 4]

    instants.clear()
    for _ in range(16_000):
        deferred(note)
    await asyncio.sleep(2.0)
    assert sum(instants.values()) == 16_000
    assert max(instants.values()) == 1000


@in_virtual_time
async def test_work_waits_for_a_late_loop_but_not_forever() -> None:
    deferred, done, clock = Deferred(), list[float](), virtual_time.clock()
    deferred(lambda: done.append(now()))
    while not done and now() < 10.0:
        await asyncio.sleep(0)
        clock.advance(0.02)  # other work blocks the loop for that long
    assert done == [pytest.approx(0.5, abs=0.1)]


@in_virtual_time
async def test_work_waits_while_more_arrives_but_not_forever() -> None:
    deferred, done = Deferred(), list[float]()
    for _ in range(50):
        deferred(lambda: done.append(now()))
        await asyncio.sleep(0.009)
    assert done == []
    await asyncio.sleep(1.0)
    assert len(done) == 50
    while now() < 3.0:
        deferred(lambda: done.append(now()))
        await asyncio.sleep(0.009)
    assert done[50] == pytest.approx(1.95, abs=0.1)


@in_virtual_time
async def test_new_work_waits_though_earlier_work_is_overdue() -> None:
    deferred, waited = Deferred(), list[float]()

    def waits_since(came: float) -> None:
        waited.append(now() - came)

    while now() < 3.0:
        deferred(waits_since, now())
        await asyncio.sleep(0.009)
    assert len(waited) > 200
    assert (min(waited) >= 0.5, max(waited) < 0.53) == (True, True)


@in_virtual_time
async def test_flush_does_all_waiting_work_at_once() -> None:
    deferred, done = Deferred(), list[int]()
    for number in range(100):
        deferred(done.append, number)
    deferred.flush()
    assert done == list(range(100))
    deferred.flush()
    await asyncio.sleep(1.0)
    assert len(done) == 100
    deferred(done.append, 100)
    await asyncio.sleep(1.0)
    assert done[-1] == 100


@in_virtual_time
async def test_failing_work_does_not_hold_up_the_rest() -> None:
    deferred, done = Deferred(), list[int]()

    def fails() -> None:
        raise ValueError("not today")

    told = list[object]()
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context["exception"]))
    deferred(fails)
    deferred(done.append, 1)
    await asyncio.sleep(1.0)
    assert done == [1]
    assert [str(one) for one in told] == ["not today"]


@in_virtual_time
async def test_endless_work_does_not_keep_the_first_callers_context() -> None:
    class Mine:
        """An object in the context of a call."""

    mine: ContextVar[Mine] = ContextVar("mine")
    deferred = Deferred()

    async def first() -> weakref.ref[Mine]:
        mine.set(Mine())
        deferred(list)
        return weakref.ref(mine.get())

    left = await asyncio.create_task(first())
    for _ in range(300):
        deferred(list)
        await asyncio.sleep(0.005)
    assert (left(), len(deferred._work) > 0) == (None, True)


def test_undone_work_is_done_on_the_next_event_loop() -> None:
    deferred, done = Deferred(), list[int]()

    async def leave(number: int) -> None:
        deferred(done.append, number)

    async def stay() -> None:
        deferred(done.append, 3)
        await asyncio.sleep(1.0)

    virtual_time.run(leave(1))
    virtual_time.run(leave(2))
    virtual_time.run(stay())
    assert done == [1, 2, 3]


class SetsTimersTooLate(asyncio.SelectorEventLoop):
    """Behaves as uvloop after the process stood still: a past instant gets no timer."""

    def call_at(self, when: float, callback: Any, *arguments: Any, context: Any = None) -> Any:  # type: ignore[override]
        return self.call_soon(callback, *arguments, context=context)


def test_timer_set_too_late_loses_no_work() -> None:
    failed, done = list[Any](), list[int]()

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: failed.append(what))
        Deferred()(done.append, 1)
        for _ in range(10):
            await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=SetsTimersTooLate) as runner:
        runner.run(main())
    assert (done, failed) == ([1], [])
