"""A stalled event loop is noticed, with the function and the tenant at fault."""

from __future__ import annotations

import asyncio
import re
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import Context

import pytest
import uvloop

from deadlinemesh.deadline import SYSTEM_CLOCK, DeadlineContext, Scopes
from deadlinemesh.deadline.lag import ASK_EVERY, LAGS_AFTER, Lag, LagWatch, _waits
from deadlinemesh.hosting.event_loop import event_loop

STALL = 2 * (ASK_EVERY + LAGS_AFTER)


class Hop:
    """The scopes of one hop, and the reported lags of its loop."""

    def __init__(self) -> None:
        self.scopes = Scopes("tool-runner")
        self.lags: asyncio.Queue[Lag] = asyncio.Queue()
        self.watch = Watch(self.scopes, self.lags.put_nowait)


class Watch(LagWatch):
    """A watch with an event for each of its steps."""

    def __init__(self, scopes: Scopes, on_lag: Callable[[Lag], None]) -> None:
        self.asks, self.looked = threading.Event(), threading.Event()
        self.concluded = asyncio.Event()
        super().__init__(scopes, on_lag)

    def again(self) -> None:
        for event in (self.asks, self.looked, self.concluded):
            event.clear()

    def _ask(self) -> None:
        self.asks.set()
        super()._ask()
        self._loop.call_soon_threadsafe(self.concluded.set)  # after the lag, if it was one

    def _look(self) -> tuple[str, DeadlineContext | None] | None:
        found = super()._look()
        self.looked.set()
        return found


def context_of(tenant_id: str) -> DeadlineContext:
    now = SYSTEM_CLOCK.monotonic()
    return DeadlineContext(tenant_id, now + 60, "free", "0" * 32, "run-1", now)


@asynccontextmanager
async def watched() -> AsyncIterator[Hop]:
    """A watched hop with one idle call."""
    hop = Hop()
    async with hop.scopes.open(context_of("idler")):
        yield hop
    hop.watch.stop()


def block(watch: Watch) -> None:
    watch.looked.wait()


def spin(watch: Watch) -> None:
    while not watch.looked.is_set():
        pass


def match(watch: Watch) -> None:
    while not watch.asks.is_set():
        pass
    # One call that holds the interpreter. It grows until it stalls long enough on any machine.
    for length in range(16, 64):
        began = time.monotonic()
        re.match("(a+)+$", "a" * length + "b")
        if time.monotonic() - began > STALL:
            return


@pytest.mark.parametrize("stall", [block, spin, match])
async def test_stalling_function_is_named_with_its_tenant(stall: Callable[[Watch], None]) -> None:
    async with watched() as hop:

        async def work() -> None:
            async def child() -> None:
                stall(hop.watch)

            await asyncio.create_task(child())

        context = context_of("acme")
        lag = Lag(0.0, "", None)
        # Without a function, the machine was too busy: the watch had no sample in time. Try again.
        while not lag.function:
            hop.watch.again()
            await hop.scopes.open(context).run(work())
            await hop.watch.concluded.wait()
            if not hop.lags.empty():
                lag = hop.lags.get_nowait()
        assert lag.function.startswith(f"{__name__}.{stall.__name__}:")
        assert lag.context == context
        assert lag.seconds >= LAGS_AFTER


async def test_stalling_callback_outside_any_call_is_named_too() -> None:
    async with watched() as hop:
        asyncio.get_running_loop().call_soon(block, hop.watch, context=Context())
        lag = await hop.lags.get()
        assert lag.context is None
        assert lag.function.startswith(f"{__name__}.block:")


async def test_idle_loop_is_not_asked() -> None:
    asked: list[object] = []

    class Loop(asyncio.SelectorEventLoop):
        def call_soon_threadsafe(self, *args: object, **options: object) -> asyncio.Handle:
            asked.append(args)
            raise RuntimeError("closed")

    async def idle(scopes: Scopes) -> None:
        LagWatch(scopes, asked.append)
        await asyncio.sleep(4 * ASK_EVERY)

    def run() -> None:
        with asyncio.Runner(loop_factory=Loop) as runner:
            runner.run(idle(Scopes("idle")))

    await asyncio.to_thread(run)
    assert asked == []


@pytest.mark.parametrize("loop", [event_loop, uvloop.new_event_loop, asyncio.new_event_loop])
def test_waiting_loop_is_known_by_its_frame(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def main() -> None:
        running, found = asyncio.get_running_loop(), asyncio.Event()
        thread = threading.get_ident()
        assert not _waits(sys._current_frames()[thread])

        def look() -> None:
            while not _waits(sys._current_frames()[thread]):
                time.sleep(0)
            running.call_soon_threadsafe(found.set)

        looking = threading.Thread(target=look)
        looking.start()
        await found.wait()
        looking.join()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())
