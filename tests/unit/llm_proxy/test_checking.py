"""Which conversations are valid, and what is said of those that are not."""

import pytest

from deadlinemesh.errors import InvalidRequest
from deadlinemesh.llm_proxy.checking import check
from deadlinemesh.llm_proxy.providers.tokens import estimated_tokens
from deadlinemesh.vocabulary import Message, Role, ToolCall, ToolChoice, ToolSpec, TurnRequest

USER = Message(Role.USER, "hello")
ASKS = Message(Role.ASSISTANT, "", (ToolCall("c1", "look", "{}"), ToolCall("c2", "look", '{"a": 1}')))
ONE, TWO = Message(Role.TOOL, "1", (), "c1"), Message(Role.TOOL, "2", (), "c2")


def refused(*messages: Message, **turn: object) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as raised:
        check(TurnRequest("m", messages, **turn))  # type: ignore[arg-type]  # each test names what it is about
    return {violation.field: violation.description for violation in raised.value.violations}


@pytest.mark.parametrize(
    "messages",
    [
        (USER,),
        (Message(Role.SYSTEM, "be brief"), USER),
        (USER, ASKS, ONE, TWO),
        (USER, ASKS, TWO, ONE, Message(Role.ASSISTANT, "done"), USER),
        (USER, ASKS, ONE, USER, TWO),
        (USER, Message(Role.ASSISTANT, "and so")),
    ],
)
def test_a_history_in_which_every_call_is_answered_once_is_valid(messages: tuple[Message, ...]) -> None:
    check(TurnRequest("m", messages))


def test_every_violation_is_told_at_once_with_its_field() -> None:
    told = refused(Message(None, "?"), USER, ASKS, ONE, ONE, Message(Role.TOOL, "3", (), "c9"))
    assert list(told) == ["messages[0].role", "messages[4].tool_call_id", "messages[5].tool_call_id", "messages[5]"]
    assert "one of system, user, assistant, tool" in told["messages[0].role"]
    assert "answered already" in told["messages[4].tool_call_id"]
    assert "answers no open call; open are: c2" in told["messages[5].tool_call_id"]
    assert told["messages[5]"] == "the last message leaves calls unanswered: c2"


def test_an_assistant_may_not_speak_while_calls_are_open() -> None:
    assert "c2" in refused(USER, ASKS, ONE, Message(Role.ASSISTANT, "well"))["messages[3]"]


def test_a_conversation_may_not_end_with_open_calls() -> None:
    assert "c1, c2" in refused(USER, ASKS)["messages[1]"]


def test_an_empty_conversation_is_refused() -> None:
    assert "messages" in refused()


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (ToolCall("", "look", "{}"), "messages[1].tool_calls[0].id"),
        (ToolCall("c1", "", "{}"), "messages[1].tool_calls[0].name"),
        (ToolCall("c1", "look", "[1]"), "messages[1].tool_calls[0].arguments_json"),
        (ToolCall("c1", "look", '{"a": '), "messages[1].tool_calls[0].arguments_json"),
    ],
)
def test_a_malformed_call_is_refused(call: ToolCall, field: str) -> None:
    assert field in refused(USER, Message(Role.ASSISTANT, "", (call,)), Message(Role.TOOL, "", (), "c1"))


def test_a_call_id_is_used_once_in_a_conversation() -> None:
    assert "used before" in refused(USER, ASKS, ONE, TWO, ASKS, ONE, TWO)["messages[4].tool_calls[0].id"]


def test_calls_and_answers_belong_to_their_roles() -> None:
    told = refused(Message(Role.USER, "x", ASKS.tool_calls), Message(Role.USER, "y", (), "c1"))
    assert list(told) == ["messages[0].tool_calls", "messages[1].tool_call_id"]


def test_tools_have_unique_and_proper_names() -> None:
    tools = tuple(ToolSpec(name, "", {}) for name in ("look", "look", "no such name", ""))
    told = refused(USER, tools=tools)
    assert list(told) == [f"tools[{i}].name" for i in range(4)]


def test_requiring_a_tool_needs_one() -> None:
    assert "tool_choice" in refused(USER, tool_choice=ToolChoice.REQUIRED)


def test_a_negative_limit_is_refused() -> None:
    assert "max_output_tokens" in refused(USER, max_output_tokens=-1)


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("a", 1), ("abcd", 1), ("abcde", 2)])
def test_four_characters_are_a_token(text: str, tokens: int) -> None:
    assert estimated_tokens(text) == tokens
