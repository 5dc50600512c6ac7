"""A tool's result that is too long is shortened by a cheaper model while there is time, and cut with a mark when there is none."""

from __future__ import annotations

import asyncio

import pytest
from tests.support.agent_world import ANSWER, ENDED, HANGS, Models, Script, Tools, ToolScript, World, asks_for
from tests.support.virtual import in_virtual_time, now

from deadlinemesh.errors import DeadlineSpent, MeshError, UpstreamFailed
from deadlinemesh.orchestrator.agent import Agent
from deadlinemesh.orchestrator.shortening import SHARE, Bounds, cut
from deadlinemesh.vocabulary import (
    FinishReason,
    Phase,
    Role,
    TextDelta,
    ToolEvent,
    ToolResult,
    ToolStarted,
    ToolStatus,
    TurnFinished,
    TurnStarted,
)

LONG = "row " * 500
BOUNDS = Bounds(400, "cheap")
ASKS: list[Script] = [asks_for("look"), ANSWER]
TALE: ToolScript = [ToolStarted(), 0.1, ToolResult(ToolStatus.OK, LONG)]
IN_SHORT: Script = [
    TurnStarted(),
    0.2,
    TextDelta("five hundred "),
    0.1,
    TextDelta("rows"),
    TurnFinished(FinishReason.STOP, 100, 3),
]


def given(agent: Agent) -> str:
    """What the model was given of the tool's result."""
    return next(message.content for message in agent.history if message.role is Role.TOOL)


@in_virtual_time
async def test_a_long_result_is_shortened_by_the_other_model_and_what_that_takes_is_accounted_for() -> None:
    world = World()
    models = Models(main=ASKS.copy(), cheap=[IN_SHORT])
    agent = await world.run(models, Tools(TALE), results=BOUNDS)
    assert given(agent) == f"[shortened by another model: the answer has {len(LONG)} characters]\nfive hundred rows"
    assert [model for model, _ in models.asked] == ["main", "cheap", "main"]
    assert (agent.usage.model_calls, agent.usage.input_tokens, agent.usage.output_tokens) == (3, 102, 5)
    assert world.ledger.spent()[Phase.PROCESSING] == pytest.approx(0.3)


@pytest.mark.parametrize("after", [UpstreamFailed("reset"), HANGS])
@in_virtual_time
async def test_what_a_shortener_has_finished_stands_whatever_becomes_of_its_call(after: float | MeshError) -> None:
    agent = await World().run(Models(main=ASKS.copy(), cheap=[[*IN_SHORT, after]]), Tools(TALE), results=BOUNDS)
    assert given(agent).endswith("five hundred rows")


@in_virtual_time
async def test_a_result_that_fits_is_left_alone() -> None:
    models = Models(main=ASKS.copy(), cheap=[IN_SHORT])
    agent = await World().run(models, Tools(TALE), results=Bounds(len(LONG), "cheap"))
    assert given(agent) == LONG


@in_virtual_time
async def test_without_a_shortener_it_is_cut_and_says_so() -> None:
    agent = await World().run(Models(main=ASKS.copy()), Tools(TALE), results=Bounds(400))
    assert given(agent) == f"{LONG[:400]}\n[cut: the answer has {len(LONG)} characters]" == cut(LONG, 400)


@pytest.mark.parametrize(
    "fails", [[UpstreamFailed("down")], [TurnStarted(), 0.1, TextDelta("five"), UpstreamFailed("down")]]
)
@in_virtual_time
async def test_where_the_shortener_fails_it_is_cut(fails: Script) -> None:
    agent = await World().run(Models(main=ASKS.copy(), cheap=[fails]), Tools(TALE), results=BOUNDS)
    assert given(agent) == cut(LONG, 400)


@in_virtual_time
async def test_where_the_shortener_says_more_than_there_is_room_for_it_is_cut() -> None:
    rambles: Script = [TurnStarted(), TextDelta("row " * 101), TurnFinished(FinishReason.STOP, 100, 101)]
    agent = await World().run(Models(main=ASKS.copy(), cheap=[rambles]), Tools(TALE), results=BOUNDS)
    assert given(agent) == cut(LONG, 400)


@in_virtual_time
async def test_a_shortener_that_hangs_has_a_part_of_the_time_and_no_more() -> None:
    began_at = now()
    agent = await World().run(Models(main=ASKS.copy(), cheap=[[HANGS]]), Tools(TALE), results=BOUNDS)
    assert given(agent) == cut(LONG, 400)
    assert now() - began_at == pytest.approx(0.1 + SHARE * 9.9 + 0.2)


@in_virtual_time
async def test_where_time_is_known_to_be_too_short_the_shortener_is_not_asked() -> None:
    world = World()
    slow: Script = [TurnStarted(), 5.0, TextDelta("five hundred rows"), TurnFinished(FinishReason.STOP, 1, 3)]
    for _ in range(5):
        await world.run(Models(main=ASKS.copy(), cheap=[slow]), Tools(TALE), results=BOUNDS, seconds=100.0)
    models = Models(main=ASKS.copy(), cheap=[slow])
    agent = await world.run(models, Tools(TALE), results=BOUNDS, seconds=10.0)
    assert [model for model, _ in models.asked] == ["main", "main"]
    assert given(agent) == cut(LONG, 400)


@in_virtual_time
async def test_a_run_that_ends_while_a_result_is_shortened_keeps_what_fits_of_it() -> None:
    world = World()
    late: list[float | MeshError | ToolEvent | ToolResult] = [ToolStarted(), 9.0, ToolResult(ToolStatus.OK, LONG)]
    models = Models(main=[asks_for("look"), [TurnStarted(), HANGS, ENDED]], cheap=[[HANGS]])
    with pytest.raises(DeadlineSpent):
        await world.run(models, Tools(late), results=BOUNDS, retries=0)
    assert given(world.agent) == cut(LONG, 400)


@in_virtual_time
async def test_a_shortener_that_was_too_slow_is_asked_again_now_and_then_and_for_good_once_it_was_quick() -> None:
    world = World()
    slow, quick = (
        [TurnStarted(), first, *IN_SHORT[2:-1], TurnFinished(FinishReason.STOP, 100, 21)] for first in (3.0, 0.2)
    )
    for _ in range(5):
        await world.run(Models(main=ASKS.copy(), cheap=[slow]), Tools(TALE), seconds=60.0, results=BOUNDS)
    shortened = []
    for _ in range(60):
        agent = await world.run(Models(main=ASKS.copy(), cheap=[quick]), Tools(TALE), results=BOUNDS)
        shortened.append("five hundred rows" in given(agent))
        await asyncio.sleep(5.0)
    assert (shortened[0], any(shortened[:5]), all(shortened[50:])) == (False, True, True)
