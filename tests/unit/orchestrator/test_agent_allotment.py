"""How the agent loop divides its time between models and tools, once it has seen what they take. On virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from tests.support.agent_world import ENDED, QUICK, RESULT, Models, Tools, World, asks_for
from tests.support.virtual import in_virtual_time, now

from deadlinemesh.errors import DeadlineSpent, MeshError
from deadlinemesh.vocabulary import (
    FinishReason,
    Phase,
    TextDelta,
    ToolCall,
    ToolSpec,
    ToolStarted,
    TurnEvent,
    TurnFinished,
    TurnRequest,
    TurnStarted,
    Writing,
)

SLOW_WORDS: list[float | MeshError | TurnEvent] = [
    TurnStarted(),
    0.5,
    *(step for _ in range(20) for step in (TextDelta("word "), 0.1)),
    TurnFinished(FinishReason.STOP, 1, 21),
]
"""Half a second to the first token, then ten tokens a second."""


async def taught() -> World:
    """A world that has seen the model's pace and what its tool takes."""
    world = World()
    for _ in range(5):
        await world.run(Models(main=[asks_for("look"), SLOW_WORDS]), Tools(QUICK), seconds=100.0)
    return world


@in_virtual_time
async def test_a_model_is_told_how_long_there_is_in_round_numbers() -> None:
    models = Models(main=[asks_for("look"), SLOW_WORDS])
    agent = await World().run(models, seconds=100.0)
    assert models.told == ["About 90 seconds are left for everything, tools included."] * 2
    assert all("seconds are left" not in message.content for message in agent.history)


@in_virtual_time
async def test_the_time_that_is_left_becomes_the_most_that_may_be_said() -> None:
    models = Models(main=[SLOW_WORDS])
    await (await taught()).run(models, seconds=11.2)
    # Behind the window is a short answer of 32 tokens; of one of the two tools nothing is known yet.
    assert models.most_tokens == [pytest.approx((11.2 - (0.5 + 3.2) - 0.5) / 0.1, abs=1)]


@in_virtual_time
async def test_before_anything_is_known_only_policy_limits_what_is_said() -> None:
    models = Models(main=[SLOW_WORDS])
    await World().run(models, seconds=11.2)
    assert models.most_tokens == [0]


@in_virtual_time
async def test_where_only_one_short_turn_fits_no_tool_is_offered_and_the_answer_is_called_partial() -> None:
    world = await taught()
    models = Models(main=[[TurnStarted(), 0.5, TextDelta("In short."), ENDED]])
    agent = await world.run(models, seconds=4.0)
    assert (models.offered, agent.text, agent.cut_short) == ([0], "In short.", True)
    assert models.told == ["Time is nearly up. Give the best answer you can now, in two sentences at most."]
    assert world.ledger.spent() == {Phase.WRAP_UP: pytest.approx(0.5)}


class OneTool(Tools):
    """Nothing else is there that could be quicker."""

    async def specs(self) -> tuple[ToolSpec, ...]:
        return (await super().specs())[:1]


class Obedient(Models):
    """Asks for a tool wherever one is offered, and nowhere else."""

    async def generate(self, turn: TurnRequest) -> AsyncGenerator[TurnEvent, None]:
        self.turns = {"main": [asks_for("look") if turn.tools and len(self.offered) == 0 else SLOW_WORDS]}
        async for event in super().generate(turn):
            yield event


@in_virtual_time
async def test_a_tool_that_was_slow_is_offered_again_now_and_then_and_for_good_once_it_was_quick() -> None:
    world = World()
    for _ in range(5):
        await world.run(
            Models(main=[asks_for("look"), SLOW_WORDS]), OneTool([ToolStarted(), 30.0, RESULT]), seconds=100.0
        )
    offered = []
    for _ in range(60):
        models = Obedient()
        await world.run(models, OneTool(QUICK), seconds=20.0)
        offered.append(bool(models.offered[0]))
        await asyncio.sleep(10.0)
    assert (offered[0], any(offered[:7]), all(offered[45:])) == (False, True, True)


@in_virtual_time
async def test_an_answer_that_had_time_is_not_called_partial() -> None:
    agent = await (await taught()).run(Models(main=[SLOW_WORDS]), seconds=60.0)
    assert not agent.cut_short


@in_virtual_time
async def test_a_turn_that_talks_on_behind_its_calls_is_cut_for_their_sake() -> None:
    world = await taught()
    talker: list[float | MeshError | TurnEvent] = [TurnStarted(), 0.5, ToolCall("c-1", "look", "{}"), 3600.0, ENDED]
    answer: list[float | MeshError | TurnEvent] = [TurnStarted(), 0.5, TextDelta("seen"), ENDED]
    began_at = now()
    agent = await world.run(Models(main=[talker, answer]), seconds=20.0)
    assert agent.text == "seen"
    assert now() - began_at == pytest.approx(20.0 - (0.5 + 3.2) + 0.5)


@in_virtual_time
async def test_a_turn_that_asks_for_nothing_may_use_the_time_of_the_tools() -> None:
    world = await taught()
    endless: list[float | MeshError | TurnEvent] = [TurnStarted(), 0.5, *(TextDelta("on "), 1.0) * 3600]
    began_at = now()
    with pytest.raises(DeadlineSpent):
        await world.run(Models(main=[endless]), seconds=20.0)
    assert now() - began_at == pytest.approx(20.0)
    assert world.agent.text == "on " * 20


@pytest.mark.parametrize("begun", [(2.0, Writing(), 2.9), (4.9, Writing()), (4.9,)])
@pytest.mark.parametrize("after", [(), (TextDelta("so"), 0.01)])
@in_virtual_time
async def test_a_turn_that_calls_before_it_speaks_teaches_nothing_of_a_models_pace(
    begun: tuple[float | TurnEvent, ...], after: tuple[float | TurnEvent, ...]
) -> None:
    world = World()
    calls: list[float | MeshError | TurnEvent] = [
        *(TurnStarted(), *begun, ToolCall("c-1", "look", "{}"), *after),
        *(0.01, TurnFinished(FinishReason.STOP, 1, 30)),
    ]
    for _ in range(5):
        await world.run(Models(main=[calls, SLOW_WORDS]), Tools(QUICK), seconds=100.0)
    models = Models(main=[calls, SLOW_WORDS])
    await world.run(models, Tools(QUICK), seconds=20.0)
    assert 0 < models.most_tokens[1] < 200
