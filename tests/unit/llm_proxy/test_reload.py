"""A reload keeps the models' slots, and the providers of turns at work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from tests.support.virtual import in_virtual_time, now, with_seconds

from deadlinemesh.deadline import entered
from deadlinemesh.llm_proxy.service import ModelService
from deadlinemesh.policy import Policy
from deadlinemesh.testing import virtual_time
from deadlinemesh.vocabulary import FinishReason, Message, ModelEvent, Role, TextDelta, TurnFinished, TurnRequest

POLICY = Policy.model_validate(
    {
        "tiers": {"free": {"run_budget": "30s", "iterations": 2}},
        "tenants": {"acme": {"tier": "free", "api_keys": ["sha256:" + "0" * 64]}},
        "models": {"demo": {"provider": "scripted", "slots": 1}},
    }
)


class Slow:
    """A provider whose turns take two seconds."""

    closed = False

    async def stream(self, turn: TurnRequest) -> AsyncGenerator[ModelEvent, None]:
        await asyncio.sleep(2.0)
        assert not self.closed, "its turn is still at work"
        yield TextDelta("done")
        yield TurnFinished(FinishReason.STOP, 1, 1)

    async def aclose(self) -> None:
        self.closed = True


async def turn(service: ModelService) -> float:
    """The instant of a turn's end."""
    with entered(with_seconds(20.0)):
        async for _ in service.generate(TurnRequest("demo", (Message(Role.USER, "hello"),))):
            pass
    return now()


@in_virtual_time
async def test_model_that_stays_keeps_its_holders_and_waiters() -> None:
    service = ModelService(POLICY, {"demo": Slow()}, virtual_time.clock())
    first = asyncio.create_task(turn(service))
    await asyncio.sleep(1.0)
    waiting = asyncio.create_task(turn(service))
    await asyncio.sleep(0)
    service.replace(POLICY, {"demo": Slow()})
    late = asyncio.create_task(turn(service))
    assert await asyncio.gather(first, waiting, late) == [2.0, 4.0, 6.0]


@in_virtual_time
async def test_old_provider_is_closed_after_its_last_turn() -> None:
    old = Slow()
    service = ModelService(POLICY, {"demo": old}, virtual_time.clock())
    running = asyncio.create_task(turn(service))
    await asyncio.sleep(1.0)
    ending = asyncio.create_task(service.replace(POLICY, {"demo": Slow()}).end())
    await asyncio.sleep(0.1)
    assert not old.closed
    assert await running == 2.0
    await ending
    assert old.closed
