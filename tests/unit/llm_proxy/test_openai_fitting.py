"""Histories made to fit a small context."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deadlinemesh.llm_proxy.providers import fitting
from deadlinemesh.llm_proxy.providers.fitting import fitted, room_for_input
from deadlinemesh.vocabulary import Message, Role, ToolCall

SYSTEM = Message(Role.SYSTEM, "Be brief.")
QUESTION = Message(Role.USER, "And what now?")


def size(messages: tuple[Message, ...]) -> int:
    """Six tokens for a message, and one for three bytes."""
    calls = ["".join(call.name + call.arguments_json for call in message.tool_calls) for message in messages]
    return sum(6 + -(-len(m.content.encode() + c.encode()) // 3) for m, c in zip(messages, calls, strict=True))


def exchange(number: int, length: int) -> tuple[Message, ...]:
    call = ToolCall(f"c{number}", "look", "{}")
    asks = Message(Role.ASSISTANT, "", (call,))
    return Message(Role.USER, f"question {number}"), asks, Message(Role.TOOL, f"{number}" * length, (), call.id)


def test_what_fits_is_left_alone() -> None:
    messages = (SYSTEM, *exchange(1, 100), QUESTION)
    assert fitted(messages, size(messages)) == messages


def test_the_oldest_results_are_shortened_first() -> None:
    messages = (SYSTEM, *exchange(1, 4000), *exchange(2, 4000), QUESTION)
    room = 1800
    shorter = fitted(messages, room)
    assert size(shorter) <= room
    assert len(shorter[3].content) < 1500
    assert "[…]" in shorter[3].content
    assert shorter[6] == messages[6]


def test_then_the_oldest_exchanges_go_whole_so_that_the_history_stays_valid() -> None:
    messages = (SYSTEM, *(message for number in range(30) for message in exchange(number, 400)), QUESTION)
    room = 300
    kept = fitted(messages, room)
    assert size(kept) <= room
    assert kept[0] == SYSTEM
    assert kept[-1] == QUESTION
    calls = {call.id for message in kept for call in message.tool_calls}
    assert calls == {message.tool_call_id for message in kept if message.role is Role.TOOL}


def test_a_question_that_is_too_long_by_itself_keeps_its_head_and_tail() -> None:
    (kept,) = fitted((Message(Role.USER, "start " + "x" * 10_000 + " end"),), 300)
    assert size((kept,)) <= 300
    assert kept.content.startswith("start ")
    assert kept.content.endswith(" end")


def test_the_newest_results_stay_though_the_system_has_the_last_word() -> None:
    asks, result = exchange(1, 20)[1:]
    time_left = Message(Role.SYSTEM, "About 5 seconds are left.")
    kept = fitted((Message(Role.USER, "x" * 10_000), asks, result, time_left), 300)
    assert kept[1:] == (asks, result, time_left)


def test_output_takes_at_most_half_the_window() -> None:
    assert room_for_input(1000, 200) == 640
    assert room_for_input(1000, 5000) == 400


def test_letters_of_many_bytes_count_for_more() -> None:
    (kept,) = fitted((Message(Role.USER, "界" * 5000),), 300)
    assert size((kept,)) <= 300


def slowly_fitted(messages: tuple[Message, ...], room: int) -> tuple[Message, ...]:
    """As its docstring says, step by step: all is measured anew, and the oldest looked for anew, before each step."""
    kept = list(messages)
    for index, message in enumerate(kept):
        if message.role is Role.TOOL:
            slowly_shortened(kept, index, room)
    while size(tuple(kept)) > room and (oldest := oldest_exchange(kept)):
        del kept[oldest]
    for index in sorted(range(len(kept)), key=lambda i: len(kept[i].content), reverse=True):
        slowly_shortened(kept, index, room)
    return tuple(kept)


def slowly_shortened(messages: list[Message], index: int, room: int) -> None:
    excess = (size(tuple(messages)) - room) * 3
    content = messages[index].content
    if excess > 0 and len(content) > 160:
        length = max(160, len(content) - excess - len(" […] ".encode()))
        head = length * 2 // 3
        messages[index] = replace(messages[index], content=content[:head] + " […] " + content[head - length :])


def oldest_exchange(messages: list[Message]) -> slice | None:
    last_question = max((i for i, m in enumerate(messages) if m.role is Role.USER), default=-1)
    free = (i for i, m in enumerate(messages) if m.role is not Role.SYSTEM and i != last_question)
    if (start := next(free, None)) is None:
        return None
    end = start + 1
    while messages[start].tool_calls and end < len(messages) and messages[end].role is Role.TOOL:
        end += 1
    last = max(i for i, m in enumerate(messages) if m.role is not Role.SYSTEM)
    return slice(start, end) if end <= last else None


def content(letter: str, length: int) -> str:
    """Such as shows which part of it was kept."""
    return "".join(f"{letter}{number}" for number in range(length))[:length]


MESSAGES = st.builds(
    Message,
    st.sampled_from(Role),
    st.builds(content, st.sampled_from("aé界"), st.integers(0, 500)),
    st.lists(st.builds(ToolCall, st.just("c"), st.just("look"), st.sampled_from(["{}", '{"a": 1}'])), max_size=2).map(
        tuple
    ),
)


@given(messages=st.lists(MESSAGES, max_size=10).map(tuple), room=st.integers(-100, 1500))
def test_what_is_kept_is_what_measuring_all_before_each_step_would_keep(
    messages: tuple[Message, ...], room: int
) -> None:
    assert fitted(messages, room) == slowly_fitted(messages, room)


class Watched(Message):
    """Counts how often anything is read from any of its kind."""

    reads = 0

    def __getattribute__(self, name: str) -> Any:
        Watched.reads += 1
        return super().__getattribute__(name)


def nothing_but_questions(number: int) -> tuple[Message, ...]:
    return (Message(Role.USER, "q" * 200),)


def nothing_but_rules(number: int) -> tuple[Message, ...]:
    return (Message(Role.SYSTEM, "r" * 200),)


def one_call_with_many_results(number: int) -> tuple[Message, ...]:
    asks = Message(Role.ASSISTANT, "", (ToolCall("c", "look", "{}"),))
    return (Message(Role.TOOL, "r" * 200, (), "c"),) if number else (asks,)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0], ids=["all-fits", "half-fits", "nothing-fits"])
@pytest.mark.parametrize(
    "entry",
    [
        lambda number: exchange(number, 400),
        nothing_but_questions,
        nothing_but_rules,
        one_call_with_many_results,
    ],
    ids=["exchanges", "questions", "rules", "results"],
)
def test_the_work_grows_with_the_history_and_not_with_its_square(
    entry: Callable[[int], tuple[Message, ...]], share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = 0
    measure = fitting._size

    def counted(message: Message) -> int:
        nonlocal measured
        measured += 1
        return measure(message)

    monkeypatch.setattr(fitting, "_size", counted)

    def work(entries: int) -> tuple[int, int]:
        """How often a message was measured, and how often anything was read of one, for each message."""
        nonlocal measured
        history = (SYSTEM, *(message for number in range(entries) for message in entry(number)), QUESTION)
        watched = tuple(Watched(m.role, m.content, m.tool_calls, m.tool_call_id) for m in history)
        measured = Watched.reads = 0
        fitted(watched, int(size(history) * share))
        return measured // len(history), Watched.reads // len(history)

    of_many = work(400)
    assert of_many[0] <= 3  # at first, as a result that is shortened, and among the longest
    assert of_many[1] <= work(40)[1] + 3
