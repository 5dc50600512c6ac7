"""Distant deadlines cost the event loop no timer. Near ones get a timer in time."""

from __future__ import annotations

import asyncio
import threading

import pytest
from tests.support.virtual import in_virtual_time, with_seconds

from deadlinemesh.deadline import SYSTEM_CLOCK, DeadlineContext, Scopes, entered, narrowed_after
from deadlinemesh.deadline.coarse_timers import NEAR, CoarseTimers, _Thread, coarse_timers_of
from deadlinemesh.errors import DeadlineSpent


def left(seconds: float) -> DeadlineContext:
    """A context on the system's clock with this time left."""
    now = SYSTEM_CLOCK.monotonic()
    return DeadlineContext("acme", now + seconds, "free", "0" * 31 + "1", "run-1", now)


class Due:
    """A watched deadline. `told` is set once it must set its timer."""

    def __init__(self, context: DeadlineContext) -> None:
        self.context = context
        self.told = asyncio.Event()

    def set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        assert loop is asyncio.get_running_loop()
        self.told.set()

    def watched_by(self, timers: CoarseTimers) -> Due:
        timers.watch(self, self.context.remaining, self.context.clock)
        return self


async def test_near_deadline_gets_its_timer_at_once() -> None:
    assert Due(left(NEAR / 2)).watched_by(CoarseTimers(asyncio.get_running_loop())).told.is_set()


@in_virtual_time
async def test_every_deadline_is_near_on_a_virtual_clock() -> None:
    assert Due(with_seconds(300.0)).watched_by(CoarseTimers(asyncio.get_running_loop())).told.is_set()


async def test_far_deadline_gets_its_timer_once_near() -> None:
    timers = CoarseTimers(asyncio.get_running_loop())
    far, nearing, forgotten = (Due(left(300.0)).watched_by(timers) for _ in range(3))
    nearing.context, forgotten.context = left(NEAR / 2), left(NEAR / 2)
    timers.forget(forgotten)
    timers.look()
    assert [due.told.is_set() for due in (far, nearing, forgotten)] == [False, True, False]
    timers.look()
    assert not far.told.is_set()


async def test_reminder_from_a_thread_makes_the_loop_look() -> None:
    timers = CoarseTimers(asyncio.get_running_loop())
    assert not await asyncio.to_thread(timers.remind)
    nearing = Due(left(300.0)).watched_by(timers)
    nearing.context = left(NEAR / 2)
    assert await asyncio.to_thread(timers.remind)
    await nearing.told.wait()
    assert not await asyncio.to_thread(timers.remind)


def test_closed_loop_is_not_reminded() -> None:
    loop = asyncio.new_event_loop()
    timers = CoarseTimers(loop)
    Due(left(300.0)).watched_by(timers)
    loop.close()
    assert not timers.remind()
    assert not timers.remind()


async def test_far_deadlines_end_scopes_and_narrowed_blocks() -> None:
    scopes = Scopes("hop-a")

    async def narrowed() -> None:
        with entered(left(300.0)):
            async with narrowed_after(2 * NEAR, "step"):
                await asyncio.get_running_loop().create_future()

    async def scoped() -> None:
        await asyncio.get_running_loop().create_future()

    ended = await asyncio.gather(scopes.open(left(2 * NEAR)).run(scoped()), narrowed(), return_exceptions=True)
    assert [type(one) for one in ended] == [DeadlineSpent, DeadlineSpent]


async def test_finished_work_leaves_no_watched_deadline() -> None:
    loop, scopes = asyncio.get_running_loop(), Scopes("hop-a")
    timers = loop._scheduled  # type: ignore[attr-defined]  # there is no public way to ask
    before = len(timers)

    async def work() -> None:
        assert len(timers) == before

    for _ in range(3):
        await scopes.open(left(300.0)).run(work())
        with entered(left(300.0)):
            async with narrowed_after(200.0):
                await work()
    assert not coarse_timers_of(loop)._far


def test_one_thread_watches_all_loops() -> None:
    async def work() -> None:
        async with Scopes("hop-a").open(left(300.0)):
            assert [thread.name for thread in threading.enumerate()].count("coarse timers") == 1

    for _ in range(3):
        asyncio.run(work())


@pytest.mark.parametrize("count", [1, 3])
async def test_closed_loops_are_forgotten(count: int) -> None:
    loops = [asyncio.new_event_loop() for _ in range(count)]
    all_timers = [coarse_timers_of(loop) for loop in loops]
    assert [coarse_timers_of(loop) for loop in loops] == all_timers
    for loop in loops:
        loop.close()
    fresh = asyncio.new_event_loop()
    coarse_timers_of(fresh)
    fresh.close()
    assert all(coarse_timers_of(loop) is not timers for loop, timers in zip(loops, all_timers, strict=True))


class Woken(threading.Event):
    """An event. At each of its steps, a new deadline is watched and dropped at once."""

    def __init__(self, thread: _Thread) -> None:
        super().__init__()
        self._thread = thread
        self.slept = False

    def somebody_comes_and_goes(self) -> bool:
        if not self._thread.awake:
            self._thread.wake()
        return False

    def clear(self) -> None:
        self.somebody_comes_and_goes()
        super().clear()

    def wait(self, timeout: float | None = None) -> bool:
        self.slept = not self.is_set()
        assert not self.slept or not self._thread.awake, "it sleeps and everybody takes it for awake"
        return True


@pytest.mark.parametrize("comes", [False, True])
def test_thread_never_sleeps_while_marked_awake(comes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    thread = _Thread()
    thread._thread = threading.current_thread()  # the test plays its part
    thread.awake = True
    woken = Woken(thread)
    monkeypatch.setattr(thread, "_woken", woken)
    monkeypatch.setattr(thread, "_remind", woken.somebody_comes_and_goes if comes else lambda: False)
    thread._doze()
    assert thread.awake
    assert woken.slept is not comes
