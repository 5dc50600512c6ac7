"""Requests that do not arrive give way to those that do."""

from __future__ import annotations

import asyncio
from unittest.mock import create_autospec

from tests.support.virtual import in_virtual_time

from deadlinemesh.testing import virtual_time
from deadlinemesh.transport.requests import BEHIND_S, MANY_BEHIND, Readings
from deadlinemesh.transport.stragglers import Exchange, Stragglers


class Caller:
    """A caller whose requests never arrive."""

    def __init__(self) -> None:
        self.stragglers = create_autospec(Stragglers, instance=True)
        self._readings = Readings(self.stragglers, virtual_time.clock())
        self._calls: list[asyncio.Task[None]] = []

    async def begin(self) -> Exchange:
        begun = asyncio.get_running_loop().create_future()

        async def call() -> None:
            task = asyncio.current_task()
            assert task is not None
            exchange = Exchange(task, "/method")
            begun.set_result(exchange)
            async with self._readings.turn("acme", exchange):
                await asyncio.Event().wait()

        self._calls.append(asyncio.create_task(call()))
        exchange: Exchange = await begun
        await asyncio.sleep(0)
        return exchange

    async def end(self) -> None:
        for call in self._calls:
            call.cancel()
        await asyncio.wait(self._calls)


@in_virtual_time
async def test_burst_of_any_size_is_waited_for() -> None:
    caller = Caller()
    for _ in range(2 * MANY_BEHIND):
        await caller.begin()
    caller.stragglers.give_up.assert_not_called()
    await caller.end()


@in_virtual_time
async def test_oldest_request_gives_way_to_newcomer() -> None:
    caller = Caller()
    first = await caller.begin()
    for _ in range(MANY_BEHIND - 1):
        await caller.begin()
    await asyncio.sleep(1.1 * BEHIND_S)
    await caller.begin()
    caller.stragglers.give_up.assert_called_once_with(first)
    await caller.end()
