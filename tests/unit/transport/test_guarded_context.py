"""What is sent first to a client is never cut in the middle."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import create_autospec

import grpc
import pytest
from tests.support.virtual import in_virtual_time, with_seconds

from deadlinemesh.deadline import Scopes
from deadlinemesh.errors import DeadlineSpent
from deadlinemesh.transport.guarded_context import GuardedContext
from deadlinemesh.transport.stragglers import Exchange, Stragglers

STATUS: Any = object()
ANOTHER_STATUS: Any = object()


class Context:
    """A call's context whose sendings end when the test says so, in `turns` awaits each."""

    def __init__(self, turns: int = 1) -> None:
        self.batches: list[asyncio.Future[None]] = []
        self.sent: list[Any] = []
        self.status: Any = None
        self.aborted: grpc.aio.AbortError | None = None
        self._turns = turns

    async def write(self, message: Any) -> None:
        for _ in range(self._turns):
            batch = asyncio.get_running_loop().create_future()
            self.batches.append(batch)
            await batch
        self.sent.append(message)

    async def send_initial_metadata(self, metadata: Any) -> None:
        await self.write(metadata)

    def code(self) -> int:
        return 7

    def done(self) -> bool:
        return self.status is not None

    async def abort_with_status(self, status: Any) -> None:
        self.status = status
        self.aborted = grpc.aio.AbortError("Locally aborted.")
        raise self.aborted


def answer_on(context: Any) -> GuardedContext:
    task = asyncio.current_task()
    assert task is not None
    return GuardedContext(context, Exchange(task, "/method"), create_autospec(Stragglers, instance=True))


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def begun(sending: Any) -> asyncio.Task[None]:
    async def wait() -> None:
        await sending

    task = asyncio.create_task(wait())
    await turns()
    return task


@in_virtual_time
async def test_a_sending_that_is_not_disturbed_is_simply_awaited() -> None:
    context = Context()
    task = await begun(answer_on(context).write("first"))
    context.batches[0].set_result(None)
    await task
    assert context.sent == ["first"]


@pytest.mark.parametrize("opening", ["write", "send_initial_metadata"])
@pytest.mark.parametrize("awaits", [1, 3])
@in_virtual_time
async def test_a_cancelled_first_sending_lets_its_task_go_at_once_and_goes_on(opening: str, awaits: int) -> None:
    context = Context(awaits)
    answer = answer_on(context)
    task = await begun(getattr(answer, opening)("first"))
    task.cancel()
    await turns()
    assert task.cancelled()
    assert not context.batches[0].cancelled()

    ended = asyncio.create_task(answer.end_with(STATUS))
    for number in range(awaits):
        await turns()
        assert not ended.done()
        context.batches[number].set_result(None)
    await ended
    assert context.sent == ["first"]


@pytest.mark.parametrize("opening", ["write", "send_initial_metadata"])
@in_virtual_time
async def test_in_a_scope_a_cancelled_first_sending_ends_before_its_task_does(opening: str) -> None:
    context = Context()
    answer = answer_on(context)
    scope = Scopes("hop-a").open(with_seconds(1.0))

    async def handler() -> None:
        await getattr(answer, opening)("first")
        raise AssertionError("the handler went on")

    task = asyncio.create_task(scope.run(handler()))
    await asyncio.sleep(2.0)
    ended = asyncio.create_task(answer.end_with(STATUS))
    await turns()
    assert not context.batches[0].cancelled()
    assert not task.done()
    assert not ended.done()
    context.batches[0].set_result(None)
    await ended
    with pytest.raises(DeadlineSpent):
        await task
    assert context.sent == ["first"]


@in_virtual_time
async def test_in_a_scope_a_timeout_of_the_handlers_own_ends_its_own_block_only() -> None:
    context = Context()
    answer = answer_on(context)

    async def handler() -> str:
        try:
            async with asyncio.timeout(1.0):
                await answer.write("first")
        except TimeoutError:
            await asyncio.sleep(1.0)
            return "went on"
        raise AssertionError("the timeout was lost")

    task = asyncio.create_task(Scopes("hop-a").open(with_seconds(9.0)).run(handler()))
    await asyncio.sleep(2.0)
    context.batches[0].set_result(None)
    assert await task == "went on"
    assert context.sent == ["first"]


@in_virtual_time
async def test_a_later_sending_is_cut_like_any_other() -> None:
    context = Context()
    answer = answer_on(context)
    first = await begun(answer.write("first"))
    context.batches[0].set_result(None)
    await first
    second = await begun(answer.write("second"))
    second.cancel()
    await turns()
    assert context.batches[1].cancelled()
    await answer.end_with(STATUS)


@in_virtual_time
async def test_a_sending_that_fails_raises_and_one_that_fails_after_a_cancel_is_silent() -> None:
    context = Context()
    failing = await begun(answer_on(context).write("first"))
    context.batches[0].set_exception(ConnectionError("gone"))
    with pytest.raises(ConnectionError, match="gone"):
        await failing

    answer = answer_on(context)
    cut = await begun(answer.write("first"))
    cut.cancel()
    await turns()
    context.batches[1].set_exception(ConnectionError("gone"))
    await answer.end_with(STATUS)
    assert cut.cancelled()
    assert context.sent == []


@in_virtual_time
async def test_a_cancel_that_comes_with_the_end_of_the_sending_loses_neither() -> None:
    context = Context()
    answer = answer_on(context)
    task = await begun(answer.write("first"))
    context.batches[0].set_result(None)
    task.cancel()
    await turns()
    assert task.cancelled()
    await answer.end_with(STATUS)
    assert context.sent == ["first"]


@in_virtual_time
async def test_a_second_opening_does_not_make_the_status_overtake_the_first() -> None:
    context = Context()
    answer = answer_on(context)
    first = await begun(answer.send_initial_metadata("headers"))
    first.cancel()
    await turns()
    again = await begun(answer.send_initial_metadata("headers again"))
    again.cancel()
    ended = asyncio.create_task(answer.end_with(STATUS))
    await turns()
    assert not ended.done()
    context.batches[0].set_result(None)
    await ended


@in_virtual_time
async def test_every_sending_is_a_coroutine_as_grpc_aios_own_are() -> None:
    context = Context()
    answer = answer_on(context)
    for number, message in enumerate(("first", "second")):
        task = asyncio.create_task(answer.write(message))
        await turns()
        context.batches[number].set_result(None)
        await task
    assert context.sent == ["first", "second"]


async def test_everything_else_is_the_contexts_own() -> None:
    assert answer_on(Context()).code() == 7


@in_virtual_time
async def test_a_call_ends_once_and_keeps_nothing_of_how_it_ended() -> None:
    context = Context()
    answer = answer_on(context)
    await answer.end_with(STATUS)
    await answer.end_with(ANOTHER_STATUS)
    assert context.status is STATUS
    assert context.aborted is not None
    assert context.aborted.__traceback__ is None
