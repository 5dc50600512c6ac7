"""Two may want to send a call's status: its handler, and whoever will not wait for that any longer. Only one does."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import create_autospec

import grpc
import pytest
from tests.support.rpc import handler
from tests.support.virtual import in_virtual_time, with_seconds

from deadlinemesh.errors import DeadlineSpent
from deadlinemesh.transport import Admitted, DeadlineInterceptor
from deadlinemesh.transport.guarded_context import GuardedContext
from deadlinemesh.transport.inbound import _Method
from deadlinemesh.transport.stragglers import Exchange, Stragglers


class Context:
    """As grpc.aio's: whoever aborts a second time is told off, which nobody would handle."""

    def __init__(self) -> None:
        self.statuses = 0
        self.opening = asyncio.Event()

    def done(self) -> bool:
        return self.statuses > 0

    async def write(self, message: object) -> None:
        await self.opening.wait()

    async def abort_with_status(self, status: object) -> None:
        self.statuses += 1
        if self.statuses > 1:
            raise grpc.aio.UsageError("Abort already called!")
        raise grpc.aio.AbortError("Locally aborted.")


def exchange() -> Exchange:
    task = asyncio.current_task()
    assert task is not None
    return Exchange(task, "/method")


def _method() -> tuple[DeadlineInterceptor, _Method]:
    def gate(arrival: object) -> Admitted:
        raise AssertionError("nobody comes this way")

    interceptor = DeadlineInterceptor("hop", gate)
    return interceptor, _Method(interceptor, "/method", handler("unary_unary", lambda request, context: None))


@in_virtual_time
async def test_a_status_that_the_handler_has_sent_after_all_is_not_sent_again() -> None:
    interceptor, method = _method()
    context: Any = Context()
    method._answer_for(
        GuardedContext(context, exchange(), interceptor.stragglers), interceptor.scopes.open(with_seconds(1.0))
    )
    context.statuses = 1  # the handler ends before the other may begin
    await asyncio.gather(*interceptor._answers)
    assert context.statuses == 1


async def test_a_handler_whose_call_was_answered_for_it_sends_no_status_itself() -> None:
    _, method = _method()
    context: Any = Context()
    answer = GuardedContext(context, exchange(), create_autospec(Stragglers, instance=True))
    opening = asyncio.create_task(answer.write("headers"))
    await asyncio.sleep(0)
    refusing = asyncio.create_task(method._refuse(DeadlineSpent("late"), None, answer))
    await asyncio.sleep(0)
    with pytest.raises(grpc.aio.AbortError):
        await context.abort_with_status("of another")
    context.opening.set()
    await refusing
    await opening
    assert context.statuses == 1
