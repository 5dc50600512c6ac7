"""Histories made to fit a small context."""

from deadlinemesh.llm_proxy.conversation import Message, Role, ToolCall
from deadlinemesh.llm_proxy.providers.fitting import fitted, room_for_input

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


def test_output_takes_at_most_half_the_window() -> None:
    assert room_for_input(1000, 200) == 640
    assert room_for_input(1000, 5000) == 400


def test_letters_of_many_bytes_count_for_more() -> None:
    (kept,) = fitted((Message(Role.USER, "界" * 5000),), 300)
    assert size((kept,)) <= 300
