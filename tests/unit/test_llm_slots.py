"""Model slots: first come, first served, and never lost."""

from __future__ import annotations

import asyncio

import pytest

from deadlinemesh.llm_proxy.slots import Slots
from deadlinemesh.testing.virtual_time import clock, run


def test_slots_are_given_in_the_order_they_were_asked_for_and_the_wait_is_told() -> None:
    async def main() -> None:
        slots = Slots({"m": 1}, clock())
        waits: list[tuple[int, float]] = []

        async def turn(number: int) -> None:
            async with slots.hold("m") as waited:
                waits.append((number, waited))
                await asyncio.sleep(1)

        async with asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(turn(number))
        assert [(number, round(waited, 9)) for number, waited in waits] == [(n, float(n)) for n in range(4)]

    run(main())


def test_models_do_not_wait_for_one_another() -> None:
    async def main() -> None:
        slots = Slots({"a": 1, "b": 1}, clock())
        async with slots.hold("a"), slots.hold("b") as waited:
            assert waited == 0

    run(main())


@pytest.mark.parametrize("cancel_after", [0.0, 0.5, 1.0])
def test_a_waiter_that_leaves_takes_no_slot_with_it(cancel_after: float) -> None:
    """At 1.0 the cancel meets the very moment in which the waiter is given its slot."""

    async def main() -> None:
        slots = Slots({"m": 1}, clock())

        async def wait() -> None:
            async with slots.hold("m"):
                await asyncio.sleep(0)

        async with slots.hold("m"):
            waiter = asyncio.ensure_future(wait())
            await asyncio.sleep(0)
            asyncio.get_running_loop().call_later(cancel_after, waiter.cancel)
            await asyncio.sleep(1.0)
        await asyncio.wait([waiter])
        async with slots.hold("m") as waited:
            assert waited == 0

    run(main())


async def fail(slots: Slots) -> None:
    async with slots.hold("m") as waited:
        assert waited == 0
        raise ZeroDivisionError


def test_a_holder_that_fails_gives_its_slot_back() -> None:
    async def main() -> None:
        slots = Slots({"m": 1}, clock())
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                await fail(slots)

    run(main())
