"""What was said stays a valid history, whatever a model does: `World.run` and `Models.generate` see to that in each of these."""

from __future__ import annotations

import pytest
from tests.support.agent_world import ANSWER, ENDED, QUICK, Models, Script, Tools, ToolScript, World, asks_for
from tests.support.virtual import in_virtual_time

from deadlinemesh.orchestrator.events import ToolCallFinished, ToolCallStarted
from deadlinemesh.vocabulary import Role, ToolCall, ToolResult, ToolStarted, ToolStatus, TurnStarted


@in_virtual_time
async def test_calls_of_two_turns_may_have_one_name() -> None:
    agent = await World().run(Models(main=[asks_for("look"), asks_for("look"), ANSWER]))
    assert [call.id for message in agent.history for call in message.tool_calls] == ["call-look", "call-look_2"]


@pytest.mark.parametrize("name", ["call_0", ""])
@in_virtual_time
async def test_calls_of_one_turn_may_have_one_name_and_each_gets_its_own_result(name: str) -> None:
    world = World()
    turn: Script = [TurnStarted(), *(ToolCall(name, "look", f'{{"n": {n}}}') for n in range(3)), ENDED]
    seen: list[ToolScript] = [[ToolStarted(), ToolResult(ToolStatus.OK, f"seen {n}")] for n in range(3)]
    tools = Tools(*seen, QUICK)
    agent = await world.run(Models(main=[turn, ANSWER]), tools)
    (asked,) = (message.tool_calls for message in agent.history if message.tool_calls)
    answered = {message.tool_call_id: message.content for message in agent.history if message.role is Role.TOOL}
    assert [answered[call.id] for call in asked] == ["seen 0", "seen 1", "seen 2"]
    started = [event.call for event in world.events if isinstance(event, ToolCallStarted)]
    finished = [event.call for event in world.events if isinstance(event, ToolCallFinished)]
    assert (started, finished) == (list(asked), list(asked))


@in_virtual_time
async def test_a_tool_that_the_run_may_not_use_is_not_called_however_the_model_came_by_its_name() -> None:
    tools = Tools(QUICK)
    agent = await World().run(Models(main=[asks_for("refund"), ANSWER]), tools)
    ((call, result),) = agent.finished_calls
    assert (call.name, result.status, tools.began) == ("refund", ToolStatus.UNKNOWN_TOOL, [])
    assert result.content == "there is no tool 'refund'; one of look, pay"
