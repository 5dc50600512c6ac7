"""What the scripted model says, and when."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing

import pytest

from deadlinemesh.llm_proxy.checking import check
from deadlinemesh.llm_proxy.providers.scripted import ScriptedProvider
from deadlinemesh.policy.model import ScriptedModel
from deadlinemesh.testing.virtual_time import clock, run
from deadlinemesh.vocabulary import (
    FinishReason,
    Message,
    ModelEvent,
    Role,
    TextDelta,
    ToolCall,
    ToolChoice,
    ToolSpec,
    TurnFinished,
    TurnRequest,
)

TASK = ToolSpec(
    "long_task",
    "Take a while.",
    {"type": "object", "properties": {"seconds": {"type": "number"}}, "required": ["seconds"]},
)
CRM = ToolSpec(
    "crm_lookup",
    "Looks up a customer in the CRM.",
    {"type": "object", "properties": {"customer": {"type": "string"}}, "required": ["customer"]},
)
TOOLS = (TASK, CRM)
BOTH = "Run the long task for 20 seconds and look up customer Globex"


def turn(
    *messages: Message | str,
    tools: tuple[ToolSpec, ...] = TOOLS,
    choice: ToolChoice = ToolChoice.AUTO,
    tokens: int = 1000,
) -> TurnRequest:
    said = tuple(Message(Role.USER, message) if isinstance(message, str) else message for message in messages)
    return TurnRequest("demo", said, tools, choice, tokens)


def events_of(request: TurnRequest, **model: float) -> list[tuple[float, ModelEvent]]:
    """Every event with the instant it came at."""

    async def collect() -> list[tuple[float, ModelEvent]]:
        settings = {"first_token": 0.0, "per_token": 0.0, **model}
        provider = ScriptedProvider(ScriptedModel(provider="scripted", **settings))
        return [(clock().monotonic(), event) async for event in provider.stream(request)]

    return run(collect())


def said(request: TurnRequest) -> tuple[str, list[ToolCall], TurnFinished]:
    events = [event for _, event in events_of(request)]
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    ended = events[-1]
    assert isinstance(ended, TurnFinished)
    return text, [event for event in events if isinstance(event, ToolCall)], ended


def answered(request: TurnRequest, *results: str) -> TurnRequest:
    """`request` after its calls were made and answered with `results`."""
    text, calls, _ = said(request)
    answers = [Message(Role.TOOL, result, (), call.id) for call, result in zip(calls, results, strict=True)]
    messages = (*request.messages, Message(Role.ASSISTANT, text, tuple(calls)), *answers)
    after = turn(*messages, tools=request.tools, choice=request.tool_choice)
    check(after)
    return after


def test_it_asks_for_all_that_is_meant_in_one_turn_and_says_so_first() -> None:
    text, calls, ended = said(turn(BOTH))
    assert text == "I'll use long_task (seconds 20) and crm_lookup (customer Globex). "
    assert [(call.name, call.arguments_json) for call in calls] == [
        ("long_task", '{"seconds": 20}'),
        ("crm_lookup", '{"customer": "Globex"}'),
    ]
    assert len({call.id for call in calls}) == 2
    assert ended.finish_reason is FinishReason.TOOL_CALLS


def test_it_answers_with_what_the_tools_found_and_says_plainly_what_failed() -> None:
    request = answered(
        turn(BOTH), "cut: the run's time was spent", '{"name": "Globex", "tier": "gold", "open": [1, 2]}'
    )
    text, calls, ended = said(request)
    assert not calls
    assert "crm_lookup (customer Globex): name Globex, tier gold, open 1, 2." in text
    assert "long_task (seconds 20) gave no result: cut: the run's time was spent." in text
    assert ended.finish_reason is FinishReason.STOP


def test_a_failure_that_is_json_is_recognised() -> None:
    text, _, _ = said(answered(turn("Look up customer Globex"), '{"error": {"code": 503, "message": "CRM is down"}}'))
    assert text == "I could not find this out. crm_lookup (customer Globex) gave no result: CRM is down."


def test_a_long_result_without_words_is_told_at_once() -> None:
    """It took three minutes of the event loop."""
    text, _, _ = said(answered(turn("Look up customer Globex"), "-" * 200_000))
    assert text.startswith("Here is what I found. crm_lookup (customer Globex): -")


@pytest.mark.parametrize("depth", [20, 60, 500, 990, 20_000])
def test_a_result_is_told_however_deeply_it_is_nested(depth: int) -> None:
    for opening, closing in (("[", "]"), ('{"error": ', "}")):
        text, _, ended = said(answered(turn("Look up customer Globex"), opening * depth + "7" + closing * depth))
        assert "crm_lookup (customer Globex)" in text
        assert ended.finish_reason is FinishReason.STOP


@pytest.mark.parametrize("depth", [20, 500, 940, 20_000])
def test_an_answered_call_is_told_however_deeply_its_arguments_are_nested(depth: int) -> None:
    arguments = '{"customer": ' * depth + "7" + "}" * depth
    asks = Message(Role.ASSISTANT, "", (ToolCall("1", "crm_lookup", arguments),))
    text, _, _ = said(turn("Hm.", asks, Message(Role.TOOL, "gold", (), "1")))
    assert "gold" in text


@pytest.mark.parametrize(
    "results",
    [["[" + "[]," * 1_200_000 + "[]]"], ["[" + "[]," * 5000 + "[]]"] * 240],
    ids=["one that is long", "very many"],
)
def test_little_is_parsed_of_results_in_a_long_history(results: list[str]) -> None:
    """It took 400 ms of the event loop for one, and as long again for each time that it was looked at."""
    calls = tuple(ToolCall(f"c{number}", "crm_lookup", "{}") for number in range(len(results)))
    answers = [Message(Role.TOOL, result, (), call.id) for call, result in zip(calls, results, strict=True)]
    request = turn("Look up customer Globex", Message(Role.ASSISTANT, "", calls), *answers, choice=ToolChoice.NONE)
    began = time.thread_time()
    assert said(request)[0].startswith("Here is what I found.")
    assert time.thread_time() - began < 0.3


def test_it_takes_the_steps_of_a_task_one_after_the_other() -> None:
    request = turn("Look up customer Globex, then run the long task for 2 seconds")
    assert [call.name for call in said(request)[1]] == ["crm_lookup"]
    request = answered(request, "known")
    assert [call.name for call in said(request)[1]] == ["long_task"]
    text, calls, _ = said(answered(request, "done"))
    assert not calls
    assert "known" in text
    assert "done" in text


def test_a_call_that_the_history_answers_is_never_made_again() -> None:
    once = answered(turn("Look up customer Globex"), "known since 2019")
    again = turn(*once.messages, Message(Role.ASSISTANT, "There."), "And what of customer Globex?")
    text, calls, _ = said(again)
    assert not calls
    assert "known since 2019" in text


def test_being_told_to_finish_after_a_result_is_no_new_question() -> None:
    once = answered(turn("Look up customer Globex"), "known since 2019")
    text, calls, _ = said(turn(*once.messages, "Time is nearly spent: answer now.", tools=()))
    assert not calls
    assert "known since 2019" in text


def test_without_leave_to_use_tools_it_answers_in_text() -> None:
    text, calls, ended = said(turn(BOTH, choice=ToolChoice.NONE))
    assert not calls
    assert "I did not get to ask long_task (seconds 20) and crm_lookup (customer Globex)." in text
    assert ended.finish_reason is FinishReason.STOP


def test_a_required_tool_is_asked_for_whatever_the_prompt() -> None:
    assert len(said(turn("blah", choice=ToolChoice.REQUIRED))[1]) == 1


@pytest.mark.parametrize(
    ("prompt", "start"), [("Hello!", "Hello!"), ("Thanks a lot", "You are welcome."), ("Why?", "You said: “Why?”")]
)
def test_without_a_fitting_tool_it_answers_directly(prompt: str, start: str) -> None:
    text, calls, _ = said(turn(prompt))
    assert not calls
    assert text.startswith(start)


def test_it_writes_at_the_length_it_is_asked_for() -> None:
    text, _, _ = said(turn("Write 250 words about deadlines", tokens=10_000))
    assert len(text.split()) == 250
    assert "deadlines" in text


def test_the_token_limit_ends_text_in_the_middle() -> None:
    events = [event for _, event in events_of(turn("Write 250 words about deadlines", tokens=7))]
    assert len(events) == 8
    assert events[-1] == TurnFinished(FinishReason.LENGTH, events[-1].input_tokens, 7)  # type: ignore[union-attr]


def test_a_call_that_the_token_limit_would_cut_is_not_made() -> None:
    for tokens in range(1, 25):
        _, calls, ended = said(turn("Look up customer Globex", tokens=tokens))
        assert ended.output_tokens <= tokens
        assert (ended.finish_reason is FinishReason.TOOL_CALLS) == bool(calls)
    assert calls


def test_the_same_request_gives_the_same_words_and_waits_and_another_seed_other_waits() -> None:
    request = turn(BOTH)
    assert events_of(request, per_token=0.01) == events_of(request, per_token=0.01)
    times = [[at for at, _ in events_of(request, per_token=0.01, seed=seed)] for seed in (0, 1)]
    assert times[0] != times[1]


def test_without_jitter_the_waits_are_exact() -> None:
    events = events_of(turn("Hello!"), first_token=0.5, per_token=0.01, jitter=0.0)
    tokens = len(events) - 1
    assert events[0][0] == pytest.approx(0.5)
    assert events[-1][0] == pytest.approx(0.5 + 0.01 * (tokens - 1))


def test_jitter_spreads_the_wait_around_its_median() -> None:
    waits = sorted(events_of(turn("Hello!"), first_token=1.0, jitter=0.3, seed=seed)[0][0] for seed in range(201))
    assert waits[100] == pytest.approx(1.0, rel=0.1)
    assert waits[0] < 0.7
    assert waits[-1] > 1.4


def test_closing_the_stream_in_the_middle_ends_it_at_once() -> None:
    async def main() -> float:
        provider = ScriptedProvider(ScriptedModel(provider="scripted", first_token=0, per_token=1, jitter=0))
        async with aclosing(provider.stream(turn("Write a long story about rain"))) as events:
            await anext(events)
            await anext(events)
        return clock().monotonic()

    assert run(main()) == pytest.approx(1.0)


def test_a_cancel_reaches_a_waiting_stream() -> None:
    async def main() -> None:
        provider = ScriptedProvider(ScriptedModel(provider="scripted", first_token=1000))
        task = asyncio.ensure_future(anext(provider.stream(turn("Hello!"))))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert clock().monotonic() == 0

    run(main())
