"""A thread cannot be stopped. It is reported, takes no other's place, and delays no exit."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator

import pytest

from deadlinemesh.deadline import SYSTEM_CLOCK, DeadlineContext, Orphan, Scope, Scopes
from deadlinemesh.deadline import threads as module
from deadlinemesh.deadline.scope import REPORT_ORPHAN_AFTER
from deadlinemesh.deadline.threads import Threads
from deadlinemesh.errors import Cause, ClientCancelled, DeadlineSpent
from deadlinemesh.tool_runner.kinds.cancelled_once import cancelled_once


class Hop:
    """The scopes of one hop, and the reported orphans."""

    def __init__(self) -> None:
        self.orphans: list[Orphan] = []
        self.reported = asyncio.Event()
        self._scopes = Scopes("tool-runner", self._report)

    def open(self) -> Scope:
        now = SYSTEM_CLOCK.monotonic()
        return self._scopes.open(DeadlineContext("acme", now + 60, "free", "0" * 32, "run-1", now))

    def _report(self, orphan: Orphan) -> None:
        self.orphans.append(orphan)
        self.reported.set()


class Block:
    """A call that blocks until `let_go`, and cannot be cancelled."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._let_go = threading.Event()

    def __call__(self) -> str:
        self._loop.call_soon_threadsafe(self.began.set)
        self._let_go.wait()
        return "done"

    def let_go(self) -> None:
        self._let_go.set()


@pytest.fixture
async def block() -> AsyncIterator[Block]:
    """A blocking call. It is let go at the end of the test."""
    one = Block()
    yield one
    one.let_go()


def with_threads(most: int) -> Threads:
    """Give the running loop this number of threads, and return them."""
    threads = Threads(most)
    asyncio.get_running_loop().set_default_executor(threads)
    return threads


async def test_thread_call_returns_its_result_or_raises_its_error() -> None:
    with_threads(1)

    async def work() -> str:
        with pytest.raises(ValueError, match="invalid literal"):
            await asyncio.to_thread(int, "x")
        return await asyncio.to_thread(str, 42)

    hop = Hop()
    assert await hop.open().run(work()) == "42"
    assert hop.orphans == []


async def test_calls_beyond_the_threads_wait_and_all_finish() -> None:
    with_threads(2)
    assert await asyncio.gather(*(asyncio.to_thread(abs, -n) for n in range(50))) == list(range(50))


async def test_orphan_thread_is_reported_with_owner_and_function(block: Block) -> None:
    with_threads(1)
    hop = Hop()
    scope = hop.open()
    running = asyncio.create_task(scope.run(asyncio.to_thread(block)))
    await block.began.wait()
    scope.stop(Cause.DEADLINE_SPENT)
    with pytest.raises(DeadlineSpent):
        await running
    await hop.reported.wait()
    (orphan,) = hop.orphans
    assert (orphan.context.tenant_id, orphan.context.run_id, orphan.hop) == ("acme", "run-1", "tool-runner")
    assert orphan.task == f"a thread in {__name__}.Block"
    assert REPORT_ORPHAN_AFTER <= orphan.age < 2 * REPORT_ORPHAN_AFTER


async def test_unawaited_thread_is_reported_too(block: Block) -> None:
    with_threads(1)
    hop = Hop()

    async def start() -> None:
        asyncio.get_running_loop().run_in_executor(None, block)
        await block.began.wait()

    await hop.open().run(start())
    await hop.reported.wait()
    assert len(hop.orphans) == 1


async def test_thread_ending_soon_after_its_call_is_no_orphan(block: Block) -> None:
    threads = with_threads(1)
    hop = Hop()
    scope = hop.open()
    running = asyncio.create_task(scope.run(asyncio.to_thread(block)))
    await block.began.wait()
    scope.stop(Cause.CLIENT_CANCELLED)
    with pytest.raises(ClientCancelled):
        await running
    block.let_go()
    assert await asyncio.wrap_future(threads.submit(str, 1)) == "1"  # by the only thread
    await asyncio.sleep(REPORT_ORPHAN_AFTER + 0.01)
    assert hop.orphans == []


async def test_waiting_thread_call_of_an_ended_scope_never_begins(block: Block) -> None:
    with_threads(1)
    blocking = asyncio.create_task(asyncio.to_thread(block))
    await block.began.wait()
    begun: list[int] = []
    scope = Hop().open()
    waiting = asyncio.create_task(scope.run(asyncio.to_thread(begun.append, 1)))
    await asyncio.sleep(0)
    scope.stop(Cause.CLIENT_CANCELLED)
    with pytest.raises(ClientCancelled):
        await waiting
    block.let_go()
    assert await blocking == "done"
    assert await asyncio.to_thread(str, 1) == "1"
    assert begun == []


async def test_orphan_thread_takes_no_other_calls_place(block: Block) -> None:
    with_threads(1)
    hop = Hop()
    scope = hop.open()
    running = asyncio.create_task(scope.run(asyncio.to_thread(block)))
    await block.began.wait()
    scope.stop(Cause.DEADLINE_SPENT)
    other = asyncio.create_task(asyncio.to_thread(str, 1))
    with pytest.raises(DeadlineSpent):
        await running
    assert await other == "1"
    assert len(hop.orphans) == 1
    block.let_go()
    assert await asyncio.gather(*(asyncio.to_thread(abs, -n) for n in range(5))) == list(range(5))


async def test_thread_of_cancelled_once_work_belongs_to_its_scope(block: Block) -> None:
    with_threads(1)
    hop = Hop()
    scope = hop.open()
    running = asyncio.create_task(scope.run(cancelled_once(asyncio.to_thread(block))))
    await block.began.wait()
    scope.stop(Cause.DEADLINE_SPENT)
    with pytest.raises(DeadlineSpent):
        await running
    await hop.reported.wait()
    assert [(orphan.context.tenant_id, orphan.task) for orphan in hop.orphans] == [
        ("acme", f"a thread in {__name__}.Block")
    ]


async def test_idle_threads_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_FOR", 0.0)
    threads = with_threads(8)
    ends: list[threading.Thread] = []
    await asyncio.gather(*(asyncio.to_thread(lambda: ends.append(threading.current_thread())) for _ in range(8)))
    for thread in ends:
        thread.join()
    assert await asyncio.wrap_future(threads.submit(str, 1)) == "1"


def test_blocked_thread_does_not_keep_the_process_alive() -> None:
    source = """
import asyncio, threading
from deadlinemesh.deadline.threads import own_threads

async def main():
    loop, began = asyncio.get_running_loop(), asyncio.Event()
    own_threads(loop)
    def block():
        loop.call_soon_threadsafe(began.set)
        threading.Event().wait()
    loop.run_in_executor(None, block)
    await began.wait()

asyncio.run(main())
"""
    assert subprocess.run([sys.executable, "-c", source], timeout=30, check=True).returncode == 0
