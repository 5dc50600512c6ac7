"""What the agent loop tries again, what it leaves alone, and what is learned from it. Without gRPC, on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from tests.support.agent_world import (
    ANSWER,
    ENDED,
    HANGS,
    QUICK,
    RESULT,
    SECONDS,
    SILENT,
    Models,
    Script,
    Tools,
    ToolScript,
    World,
    asks_for,
)
from tests.support.virtual import in_virtual_time, now, with_seconds

from deadlinemesh.deadline import entered
from deadlinemesh.errors import (
    DeadlineSpent,
    DeadlineSpentUpstream,
    Doomed,
    Draining,
    InternalFailure,
    MeshError,
    Shed,
    UpstreamFailed,
    UpstreamRefused,
)
from deadlinemesh.orchestrator.events import ToolCallProgress
from deadlinemesh.orchestrator.tool_calls import ENDS_WITHIN
from deadlinemesh.orchestrator.upstreams import HANG_FACTOR, HANG_FLOOR_S, KNOWN, MOST_KNOWN, Upstreams
from deadlinemesh.telemetry import FellBack, Telemetry
from deadlinemesh.vocabulary import (
    Phase,
    TextDelta,
    ToolCall,
    ToolEvent,
    ToolProgress,
    ToolResult,
    ToolStarted,
    ToolStatus,
    TurnEvent,
    TurnStarted,
    Writing,
)


@pytest.mark.parametrize("error", [UpstreamFailed("down"), Shed("busy"), Draining("away")])
@in_virtual_time
async def test_a_model_turn_that_failed_before_it_said_anything_is_tried_again(error: MeshError) -> None:
    world, models = World(), Models(main=[[TurnStarted(), error], ANSWER])
    agent = await world.run(models)
    assert (agent.text, world.said) == ("forty-two", "forty-two")
    assert world.told() == [("model main", error.reason, "")]
    assert agent.usage.model_calls == 2
    assert world.ledger.spent()[Phase.RETRY_BACKOFF] > 0


@in_virtual_time
async def test_what_would_be_refused_again_is_not_tried_again_but_another_model_is() -> None:
    world, models = World(), Models(main=[[UpstreamRefused("404")], ANSWER], other=[ANSWER])
    with pytest.raises(UpstreamRefused):
        await world.run(models)
    assert len(models.asked) == 1
    world, models = World(), Models(main=[[UpstreamRefused("404")]], other=[ANSWER])
    assert (await world.run(models, fallbacks=("other",))).text == "forty-two"


@in_virtual_time
async def test_a_model_turn_that_has_said_something_is_not_tried_again() -> None:
    world, models = World(), Models(main=[[TurnStarted(), TextDelta("for"), UpstreamFailed("down")], ANSWER])
    with pytest.raises(UpstreamFailed):
        await world.run(models, fallbacks=("other",))
    assert (world.agent.text, world.said, len(models.asked)) == ("for", "for", 1)
    assert world.told() == []


@in_virtual_time
async def test_a_model_turn_that_has_asked_for_a_tool_is_not_tried_again() -> None:
    world, tools = World(), Tools(QUICK)
    models = Models(main=[[TurnStarted(), ToolCall("call-1", "look", "{}"), 1.0, UpstreamFailed("down")], ANSWER])
    with pytest.raises(UpstreamFailed):
        await world.run(models, tools)
    assert len(tools.began) == 1


@pytest.mark.parametrize("error", [InternalFailure("defect"), Doomed("too late")])
@in_virtual_time
async def test_a_failure_that_another_attempt_would_not_mend_ends_the_turn(error: MeshError) -> None:
    world, models = World(), Models(main=[[error], ANSWER])
    with pytest.raises(type(error)):
        await world.run(models)
    assert len(models.asked) == 1


@in_virtual_time
async def test_a_tier_without_retries_has_none_for_models_either() -> None:
    world, models = World(), Models(main=[[UpstreamFailed("down")], ANSWER])
    with pytest.raises(UpstreamFailed):
        await world.run(models, retries=0)
    assert world.told() == [("model main", "UPSTREAM_FAILED", "limit")]


@in_virtual_time
async def test_a_failed_model_gives_way_to_its_fallback_at_once_and_for_the_rest_of_the_run() -> None:
    world = World()
    models = Models(main=[[Shed("busy", retry_after=60.0)]], other=[asks_for("look"), ANSWER])
    agent = await world.run(models, retries=0, fallbacks=("other",))
    assert [(model, at) for model, at in models.asked] == [("main", 0.0), ("other", 0.0), ("other", 0.1)]
    assert agent.text == "forty-two"
    assert [event for event in world.sink.events if isinstance(event, FellBack)] == [
        FellBack("orchestrator", "acme", "run-1", "model main", "other", "SHED")
    ]


@in_virtual_time
async def test_a_silent_model_of_which_nothing_is_known_has_80_percent_before_its_fallback_is_tried() -> None:
    world, models = World(), Models(main=[SILENT], other=[ANSWER])
    agent = await world.run(models, retries=0, fallbacks=("other",))
    assert models.asked == [("main", 0.0), ("other", 8.0)]
    assert (agent.text, world.said) == ("forty-two", "forty-two")


@in_virtual_time
async def test_a_model_that_is_known_to_be_quick_gives_way_soon() -> None:
    world = World()
    for _ in range(KNOWN):
        await world.run(Models(main=[ANSWER]))
    began_at, models = now(), Models(main=[SILENT], other=[ANSWER])
    await world.run(models, retries=0, fallbacks=("other",))
    assert models.asked[1] == ("other", pytest.approx(began_at + HANG_FACTOR * 0.2 + HANG_FLOOR_S))


@in_virtual_time
async def test_a_model_that_waits_in_a_queue_or_speaks_slowly_is_not_taken_for_silent() -> None:
    world = World()
    for _ in range(KNOWN):
        await world.run(Models(main=[ANSWER]))
    queued: list[float | MeshError | TurnEvent] = [5.0, *ANSWER]
    slow: list[float | MeshError | TurnEvent] = [TurnStarted(), 0.2, TextDelta("forty-"), 9.0, TextDelta("two"), ENDED]
    for script in (queued, slow):
        models = Models(main=[script], other=[ANSWER])
        await world.run(models, fallbacks=("other",))
        assert [model for model, _ in models.asked] == ["main"]
        assert world.said == "forty-two"


@in_virtual_time
async def test_a_proxy_that_drains_is_tried_again_with_the_same_model() -> None:
    world, models = World(), Models(main=[[Draining("away")], ANSWER], other=[ANSWER])
    await world.run(models, fallbacks=("other",))
    assert [model for model, _ in models.asked] == ["main", "main"]


@in_virtual_time
async def test_the_last_of_the_chain_may_be_tried_again() -> None:
    world = World()
    models = Models(main=[[UpstreamFailed("down")]], other=[[UpstreamFailed("down too")], ANSWER])
    await world.run(models, fallbacks=("other",))
    assert [model for model, _ in models.asked] == ["main", "other", "other"]


@in_virtual_time
async def test_a_fallback_is_not_tried_where_no_time_is_left_for_it() -> None:
    world, models = World(), Models(main=[[0.02, UpstreamFailed("down")]], other=[ANSWER])
    with pytest.raises(UpstreamFailed):
        await world.run(models, fallbacks=("other",), seconds=0.06)
    assert [model for model, _ in models.asked] == ["main"]


@in_virtual_time
async def test_a_fallback_that_was_too_slow_is_tried_again_now_and_then_and_for_good_once_it_was_quick() -> None:
    world = World()
    down: Script = [UpstreamFailed("down")]
    slow: Script = [TurnStarted(), 20.0, TextDelta("forty-two"), ENDED]
    for _ in range(5):
        await world.run(Models(main=[down], spare=[slow]), fallbacks=("spare",), seconds=100.0, retries=0)
    answered = []
    for _ in range(60):
        try:
            await world.run(Models(main=[down], spare=[ANSWER]), fallbacks=("spare",), retries=0)
        except UpstreamFailed:
            answered.append(False)
        else:
            answered.append(True)
        await asyncio.sleep(10.0)
    assert (answered[0], any(answered[:6]), all(answered[45:])) == (False, True, True)


@in_virtual_time
async def test_a_slow_tool_is_not_started_twice_once_it_is_known_to_be_slow() -> None:
    world, taken = World(), 7.0
    slow: list[float | MeshError | ToolEvent | ToolResult] = [ToolStarted(), taken, RESULT]
    for _ in range(KNOWN):
        await world.run(Models(main=[asks_for("look"), ANSWER]), Tools(slow))
    slower: list[float | MeshError | ToolEvent | ToolResult] = [ToolStarted(), 9.0, RESULT]
    tools = Tools(slower)
    await world.run(Models(main=[asks_for("look"), ANSWER]), tools)
    assert len(tools.began) == 1
    assert world.agent.finished_calls[0][1].content == "seen"


@in_virtual_time
async def test_a_tool_that_hangs_though_it_is_quick_as_a_rule_is_soon_tried_again() -> None:
    world = World()
    for _ in range(KNOWN):
        await world.run(Models(main=[asks_for("look"), ANSWER]), Tools(QUICK))
    tools = Tools([ToolStarted(), HANGS], QUICK)
    await world.run(Models(main=[asks_for("look"), ANSWER]), tools)
    gave_up_after = tools.began[1] - tools.began[0]
    assert gave_up_after == pytest.approx(HANG_FACTOR * 0.1 + HANG_FLOOR_S, abs=0.1)  # and the backoff
    assert world.told() == [("tool look", "HUNG", "")]


@in_virtual_time
async def test_a_tool_that_tells_its_progress_is_left_alone() -> None:
    world = World()
    for _ in range(KNOWN):
        await world.run(Models(main=[asks_for("look"), ANSWER]), Tools(QUICK))
    steps = [step for number in range(1, 11) for step in (0.7, ToolProgress(number / 10))]
    tools = Tools([ToolStarted(), *steps, RESULT])
    await world.run(Models(main=[asks_for("look"), ANSWER]), tools)
    assert len(tools.began) == 1


@in_virtual_time
async def test_a_tool_that_never_stops_telling_its_progress_does_not_fill_the_runs_memory() -> None:
    world = World()
    telling = [step for n in range(1000) for step in (ToolProgress(n / 1000, "on"), 0.001)]
    await world.run(Models(main=[asks_for("look"), ANSWER]), Tools([ToolStarted(), *telling, RESULT]))
    told = [event.fraction for event in world.events if isinstance(event, ToolCallProgress)]
    assert told[0] == 0.0
    assert 15 <= len(told) <= 20


@in_virtual_time
async def test_what_is_not_idempotent_is_neither_tried_again_nor_given_up() -> None:
    world, failed = World(), ToolResult(ToolStatus.FAILED, "reset", transient=True)
    tools = Tools([ToolStarted(), failed])
    await world.run(Models(main=[asks_for("pay"), ANSWER]), tools)
    assert len(tools.began) == 1
    assert world.told() == [("tool pay", "UPSTREAM_FAILED", "not_idempotent")]
    tools = Tools([ToolStarted(), 9.5, RESULT])
    await world.run(Models(main=[asks_for("pay"), ANSWER]), tools)
    assert len(tools.began) == 1


@in_virtual_time
async def test_one_tenants_failing_calls_use_up_no_other_tenants_retries() -> None:
    world = World()
    down: ToolScript = [ToolStarted(), ToolResult(ToolStatus.FAILED, "reset", transient=True)]
    for _ in range(20):
        await world.run(Models(main=[asks_for("look"), ANSWER]), Tools(down), tenant_id="acme")
    assert ("tool look", "UPSTREAM_FAILED", "budget") in world.told()
    tools = Tools(down, QUICK)
    await world.run(Models(main=[asks_for("look"), ANSWER]), tools, tenant_id="bolt")
    assert len(tools.began) == 2


@in_virtual_time
async def test_in_a_full_outage_there_are_hardly_more_attempts_than_calls_and_all_end_in_time() -> None:
    world, began = World(), []
    down: list[float | MeshError | ToolEvent | ToolResult] = [0.02, UpstreamFailed("down")]

    async def run() -> None:
        tools = Tools(down)
        await world.run(Models(main=[asks_for("look"), ANSWER]), tools, retries=2, seconds=2.0)
        began.extend(tools.began)

    calls = 1000
    async with asyncio.TaskGroup() as group:
        for _ in range(calls):
            group.create_task(run())
            await asyncio.sleep(0.01)
    assert len(began) / calls <= 1.1
    refused = [why for upstream, _, why in world.told() if upstream == "tool look"]
    assert refused.count("budget") > 800


@in_virtual_time
async def test_what_is_remembered_of_upstreams_has_a_bound_and_the_oldest_goes_first() -> None:
    upstreams = Upstreams(Telemetry(), "orchestrator")
    with entered(with_seconds(SECONDS)):
        first, second = upstreams.of("tool 0"), upstreams.of("tool 1")
        for number in range(2, MOST_KNOWN):
            upstreams.of(f"tool {number}")
        assert upstreams.of("tool 0") is first
        upstreams.of("one more")
        assert len(upstreams) == MOST_KNOWN
        assert upstreams.of("tool 0") is first
        assert upstreams.of("tool 1") is not second


@in_virtual_time
async def test_a_run_that_hangs_for_want_of_any_fallback_ends_at_its_own_deadline() -> None:
    world = World()
    with pytest.raises(DeadlineSpent):
        await world.run(Models(main=[SILENT]), retries=1)
    assert now() == SECONDS


@in_virtual_time
async def test_a_runs_own_deadline_is_its_own_also_where_a_hop_below_is_the_first_to_tell() -> None:
    ahead = 0.0002  # less than the way to the hop takes
    told = DeadlineSpentUpstream("the 10 s granted to llm-proxy are spent", hop="llm-proxy")
    world, models = World(), Models(main=[[TurnStarted(), TextDelta("for"), SECONDS - ahead, told]])
    with pytest.raises(DeadlineSpent):
        await world.run(models)
    assert world.agent.text == "for"


@in_virtual_time
async def test_a_model_that_writes_a_long_tool_call_is_not_taken_for_silent() -> None:
    world = World()
    for _ in range(KNOWN):
        await world.run(Models(main=[ANSWER]))
    writes: Script = [TurnStarted(), 0.2, *(Writing(), 0.2) * 25, ToolCall("call-1", "look", "{}"), ENDED]
    models = Models(main=[writes, ANSWER], other=[ANSWER])
    agent = await world.run(models, fallbacks=("other",))
    assert ([model for model, _ in models.asked], agent.text) == (["main", "main"], "forty-two")
    assert world.told() == []
    assert [event for event in world.sink.events if isinstance(event, FellBack)] == []
    assert world.ledger.spent()[Phase.LLM_STREAM] == pytest.approx(5.0)


@in_virtual_time
async def test_a_model_that_falls_silent_while_it_writes_a_tool_call_is_given_up() -> None:
    world = World()
    for _ in range(KNOWN):
        await world.run(Models(main=[ANSWER]))
    models = Models(main=[[TurnStarted(), 0.2, Writing(), 0.2, HANGS]], other=[ANSWER])
    assert (await world.run(models, fallbacks=("other",))).text == "forty-two"
    assert [event.why for event in world.sink.events if isinstance(event, FellBack)] == ["HUNG"]


@in_virtual_time
async def test_a_model_turn_that_failed_while_it_wrote_its_first_tool_call_is_tried_again() -> None:
    fails: Script = [TurnStarted(), Writing(), 1.0, UpstreamFailed("down")]
    world, models = World(), Models(main=[fails, ANSWER])
    assert (await world.run(models)).text == "forty-two"
    assert world.told() == [("model main", "UPSTREAM_FAILED", "")]
    models = Models(main=[fails], other=[ANSWER])
    assert (await world.run(models, retries=0, fallbacks=("other",))).text == "forty-two"


LATER: list[tuple[float | MeshError, ...]] = [(), (UpstreamFailed("reset"),), (HANGS,), (0.01, Draining("away"))]


@pytest.mark.parametrize("after", LATER)
@in_virtual_time
async def test_a_tools_result_stands_at_once_whatever_becomes_of_its_call_after_it(
    after: tuple[float | MeshError, ...],
) -> None:
    world, tools = World(), Tools([ToolStarted(), 0.1, RESULT, *after])
    agent = await world.run(Models(main=[asks_for("look"), ANSWER]), tools)
    assert (len(tools.began), agent.finished_calls[0][1], agent.text) == (1, RESULT, "forty-two")
    assert now() == pytest.approx(0.1 + 0.2)


@in_virtual_time
async def test_a_failure_that_another_attempt_may_mend_is_tried_again_whether_its_call_has_ended_or_not() -> None:
    failed = ToolResult(ToolStatus.FAILED, "reset", transient=True)
    world, tools = World(), Tools([ToolStarted(), failed, HANGS], QUICK)
    agent = await world.run(Models(main=[asks_for("look"), ANSWER]), tools)
    assert (len(tools.began), agent.finished_calls[0][1]) == (2, RESULT)
    assert world.told() == [("tool look", "UPSTREAM_FAILED", "")]


class Leaving(Tools):
    """Tells when a call is left."""

    def __init__(self, *attempts: ToolScript) -> None:
        super().__init__(*attempts)
        self.left: list[float] = []

    async def call(self, call: ToolCall) -> AsyncGenerator[ToolEvent, None]:
        try:
            async for event in super().call(call):
                yield event
        finally:
            self.left.append(now())


@pytest.mark.parametrize(("after", "left_at"), [(0.3, 0.4), (HANGS, 0.1 + ENDS_WITHIN)])
@in_virtual_time
async def test_a_call_that_has_its_result_ends_by_itself_or_is_cancelled(after: float, left_at: float) -> None:
    world, tools = World(), Leaving([ToolStarted(), 0.1, RESULT, after])
    answer: Script = [TurnStarted(), 5.0, TextDelta("forty-two"), ENDED]
    await world.run(Models(main=[asks_for("look"), answer]), tools)
    assert tools.left == [pytest.approx(left_at)]


@in_virtual_time
async def test_a_model_is_not_given_up_for_a_fallback_that_has_meanwhile_been_found_too_slow() -> None:
    world, models = World(), Models(main=[[TurnStarted(), 8.5, TextDelta("late"), ENDED]], other=[ANSWER])
    three_seconds: Script = [TurnStarted(), 3.0, TextDelta("slowly"), ENDED]

    async def learn() -> None:
        await asyncio.sleep(1.0)
        async with asyncio.TaskGroup() as group:
            for _ in range(KNOWN):
                down = Models(main=[[UpstreamFailed("down")]], other=[three_seconds])
                group.create_task(world.run(down, retries=0, fallbacks=("other",), seconds=100.0))

    learning = asyncio.ensure_future(learn())
    agent = await world.run(models, retries=0, fallbacks=("other",))
    await learning
    assert (agent.text, [model for model, _ in models.asked]) == ("late", ["main"])


@in_virtual_time
async def test_a_fallback_that_was_too_slow_is_tried_again_now_and_then_for_a_model_that_hangs() -> None:
    world = World()
    slow: Script = [TurnStarted(), 20.0, TextDelta("forty-two"), ENDED]
    for _ in range(KNOWN):
        await world.run(Models(main=[[UpstreamFailed("down")]], other=[slow]), fallbacks=("other",), seconds=100.0)
    await asyncio.sleep(100.0)
    models = Models(main=[SILENT], other=[ANSWER])
    assert (await world.run(models, retries=0, fallbacks=("other",))).text == "forty-two"
    assert [model for model, _ in models.asked] == ["main", "other"]
