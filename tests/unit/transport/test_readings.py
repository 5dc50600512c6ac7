"""A reading that is cancelled: its task goes at once, its call is cancelled, and what grpc.aio does for it comes to its end."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec

import pytest
from tests.support.virtual import in_virtual_time, with_seconds

from deadlinemesh.deadline import Scopes
from deadlinemesh.errors import DeadlineSpent
from deadlinemesh.transport.outbound import MeshChannel, StreamingCall

P = ParamSpec("P")


def in_a_scope(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an async test in virtual time, as a service's handler."""

    @wraps(test)
    async def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async with Scopes("hop-a").open(with_seconds(9.0)):
            await test(*args, **kwargs)

    return in_virtual_time(run)


class Call:
    """As grpc.aio's: each message is awaited in a batch of the core's, and freed by the coroutine that awaited it."""

    def __init__(self) -> None:
        self.batch: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.cancels = 0
        self.freed = 0
        self.ended = ""

    async def __aiter__(self) -> AsyncIterator[str]:
        try:
            while True:
                message = await self.batch
                self.freed += 1
                self.batch = asyncio.get_running_loop().create_future()
                if message == "end":
                    raise asyncio.CancelledError
                yield message
        except BaseException as error:
            self.ended = type(error).__name__
            raise

    def cancel(self) -> bool:
        self.cancels += 1
        return True

    def done(self) -> bool:
        return self.cancels > 0

    def add_done_callback(self, callback: Any) -> None: ...


class Keeping(Call):
    """Keeps its generator, as grpc.aio's do, which keeps the call."""

    def __aiter__(self) -> AsyncIterator[str]:
        self.messages = super().__aiter__()
        return self.messages

    def add_done_callback(self, callback: Any) -> None:
        callback(self)  # so that its scope lets go of it


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def begun(call: Any, read: list[str]) -> asyncio.Task[None]:
    async def work() -> None:
        async for message in StreamingCall(call):
            read.append(message)

    task = asyncio.create_task(work())
    await turns()
    return task


@in_a_scope
async def test_messages_come_one_by_one() -> None:
    call, read = Call(), list[str]()
    task = await begun(call, read)
    for message in ("one", "two"):
        call.batch.set_result(message)
        await turns()
    assert read == ["one", "two"]
    task.cancel()
    await turns()


@pytest.mark.parametrize("cancels", [1, 2])
@in_a_scope
async def test_the_task_goes_at_once_and_the_batch_is_freed_as_it_ends(cancels: int) -> None:
    call, read = Call(), list[str]()
    task = await begun(call, read)
    for _ in range(cancels):
        assert task.cancel()
    await turns()
    assert task.cancelled()
    assert call.cancels >= 1
    assert (call.freed, call.batch.done()) == (0, False)
    call.batch.set_result("end")  # the core's answer to the cancelled call
    await turns()
    assert (call.freed, call.ended) == (1, "CancelledError")


@in_a_scope
async def test_a_message_that_comes_as_the_task_is_cancelled_is_freed_and_not_read() -> None:
    call, read = Call(), list[str]()
    task = await begun(call, read)
    call.batch.set_result("late")
    task.cancel()
    await turns()
    assert task.cancelled()
    assert (call.freed, read) == (1, [])


@in_a_scope
async def test_a_call_that_is_left_between_two_messages_is_freed_at_once() -> None:
    async def first(call: Keeping) -> str:
        async for message in StreamingCall(call):
            return str(message)
        raise AssertionError("there is one")

    gc.disable()  # collections of the old are rare
    try:
        call = Keeping()
        call.batch.set_result("one")
        assert await first(call) == "one"
        assert (call.cancels, call.ended) == (1, "GeneratorExit")
        left = weakref.ref(call)
        del call
        assert left() is None
    finally:
        gc.enable()


@in_a_scope
async def test_a_batch_that_fails_fails_its_reader() -> None:
    call, read = Call(), list[str]()
    task = await begun(call, read)
    call.batch.set_exception(ConnectionError("gone"))
    with pytest.raises(ConnectionError, match="gone"):
        await task
    assert call.ended == "ConnectionError"


@in_a_scope
async def test_a_timeout_around_a_reading_is_a_timeout() -> None:
    call = Call()

    async def work() -> None:
        async with asyncio.timeout(1.0):
            async for _ in StreamingCall(call):
                pass

    with pytest.raises(TimeoutError):
        await work()
    assert call.cancels >= 1


@in_virtual_time
async def test_a_scope_ends_its_calls_and_not_the_tasks_that_are_at_work_for_them() -> None:
    at_work: list[asyncio.Task[bool]] = []

    class Unary:
        """As a unary call of grpc.aio: a task waits for its status."""

        def __init__(self) -> None:
            self.status = asyncio.Event()
            at_work.append(asyncio.get_running_loop().create_task(self.status.wait()))

        def cancel(self) -> bool:
            self.status.set()  # the core's answer
            return True

        def add_done_callback(self, callback: Any) -> None:
            at_work[-1].add_done_callback(callback)

    class Channel:
        def unary_unary(self, method: str) -> Any:
            return lambda request, **options: Unary()

    call = MeshChannel(Channel(), "token").unary_unary("/some.Service/Method")  # type: ignore[arg-type]

    async def work() -> None:
        call(b"request")
        await asyncio.sleep(60)

    with pytest.raises(DeadlineSpent):
        await Scopes("hop-a").open(with_seconds(1.0)).run(work())
    await turns()
    assert [(task.done(), task.cancelled()) for task in at_work] == [(True, False)]
