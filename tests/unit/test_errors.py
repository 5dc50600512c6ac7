"""The texts of errors are short, whatever a stranger has sent, are never long on the way, and tell a tenant no addresses."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable

import pytest

from deadlinemesh.errors import (
    MOST_VIOLATIONS,
    InvalidRequest,
    MeshError,
    UpstreamFailed,
    Violation,
    Violations,
    choices,
    shown,
    without_addresses,
)
from deadlinemesh.transport.status import status_of
from deadlinemesh.vocabulary import (
    LONGEST_ARGUMENTS,
    LONGEST_CALL_ID,
    LONGEST_TOOL_NAME,
    Message,
    Role,
    ToolCall,
    history_violations,
)

LONG = "x" * 4_000_000


def peak_of(work: Callable[[], object]) -> int:
    """Bytes that `work` had allocated at most."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "an empty value"),
        (True, "true"),
        ("a\nb", r"'a\nb'"),
        ([1, "b", {"c": None}], "[1, 'b', {'c': None}]"),
        (LONG, "'" + "x" * 56 + "..."),
    ],
)
def test_a_value_is_shown_in_short(value: object, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize("value", [LONG, [LONG] * 100, {LONG: [LONG]}, list(range(1_000_000)), 10**4000])
@pytest.mark.parametrize("as_json", [False, True])
def test_a_large_value_is_never_spelled_out(value: object, as_json: bool) -> None:
    assert len(shown(value, as_json=as_json)) <= 60
    assert peak_of(lambda: shown(value, as_json=as_json)) < 13_000_000  # one text of 4 MB may be copied


def test_choices_name_only_some_of_many() -> None:
    assert choices([]) == "none is defined"
    assert choices(["a", "b"]) == "one of a, b"
    many = choices(f"tool_{number}" for number in range(4096))
    assert many.endswith("tool_19 and 4076 more")
    assert len(choices([LONG] * 50)) < 2000


def test_violations_are_cut_off_and_counted() -> None:
    found = Violations()
    assert not found
    for number in range(MOST_VIOLATIONS + 5):
        found.add(f"history[{number}]", "is wrong")
    assert found.told()[-1] == Violation("", "and 5 more")
    assert str(InvalidRequest(found.told())).endswith("history[19]: is wrong; and 5 more")


def test_an_error_from_elsewhere_has_a_bounded_text() -> None:
    assert len(str(UpstreamFailed(LONG))) < 5000
    many = InvalidRequest([Violation("tools", "is unknown")] * 5000)
    assert str(many).endswith("and 4979 more")
    error = MeshError("short")
    error.args = (LONG,)
    assert peak_of(lambda: status_of(error)) < 100_000


def history(ids: list[str], answers: int) -> list[Message]:
    calls = tuple(ToolCall(one, "look", "{}") for one in ids)
    return [Message(Role.ASSISTANT, "", calls), *(Message(Role.TOOL, "", (), "none") for _ in range(answers))]


@pytest.mark.parametrize("length", [20, 20_000])
def test_many_wrong_answers_to_calls_with_long_ids_cost_little(length: int) -> None:
    messages = history([str(number) * length for number in range(8)], 1500)
    peak = peak_of(lambda: history_violations(messages, "history"))
    found = history_violations(messages, "history")
    assert len(found) == MOST_VIOLATIONS + 1
    assert all(len(one.description) < 500 for one in found)
    assert peak < 200_000


@pytest.mark.parametrize(
    ("call", "field", "most"),
    [
        (ToolCall("i" * (LONGEST_CALL_ID + 1), "look", "{}"), "id", LONGEST_CALL_ID),
        (ToolCall("i", "n" * (LONGEST_TOOL_NAME + 1), "{}"), "name", LONGEST_TOOL_NAME),
        (ToolCall("i", "look", '{"a":"' + "x" * LONGEST_ARGUMENTS + '"}'), "arguments_json", LONGEST_ARGUMENTS),
    ],
)
def test_a_call_with_a_part_too_long_is_refused(call: ToolCall, field: str, most: int) -> None:
    messages = [Message(Role.ASSISTANT, "", (call,)), Message(Role.TOOL, "42", (), call.id)]
    first = history_violations(messages, "history")[0]
    assert first.field == f"history[0].tool_calls[0].{field}"
    assert f"at most {most} are taken" in first.description


def test_no_more_than_a_part_of_long_arguments_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[int] = []

    def loads(text: str) -> dict[str, int]:
        parsed.append(len(text))
        return {}

    monkeypatch.setattr("deadlinemesh.vocabulary.history.json.loads", loads)
    text = '{"a": [' + "[]," * 3000 + "[]]}"
    calls = tuple(ToolCall(f"c{number}", "look", text) for number in range(400))
    answers = [Message(Role.TOOL, "", (), call.id) for call in calls]
    assert history_violations([Message(Role.ASSISTANT, "", calls), *answers], "history") == []
    assert sum(parsed) <= LONGEST_ARGUMENTS
    broken = (*calls, ToolCall("last", "look", "broken"))
    found = history_violations(
        [Message(Role.ASSISTANT, "", broken), *answers, Message(Role.TOOL, "", (), "last")], "history"
    )
    assert [one.field for one in found] == ["history[0].tool_calls[400].arguments_json"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("failed to connect: ipv4:127.0.0.1:50052: refused", "failed to connect: … refused"),
        ("at http://crm.internal:8080/v1?key=x it failed", "at … it failed"),
        ("redis://:secret@cache:6379/0", "…"),
        ("lookup of crm.internal:8080 failed", "lookup of … failed"),
        ("10.1.2.3 is away, and so is [::1]:50051", "… is away, and so is …"),
        ("Incorrect API key provided: sk-abcdefgh1234", "Incorrect API key provided: …"),
        ("line 3, column 12: expected a value", "line 3, column 12: expected a value"),
        ("invalid literal for int() with base 10: 'x'", "invalid literal for int() with base 10: 'x'"),
        ("x" * 900, "x" * 497 + "..."),
    ],
)
def test_addresses_and_keys_are_left_out(words: str, told: str) -> None:
    assert without_addresses(words) == told


@pytest.mark.parametrize("piece", ["a", "a.", "a-", "[", "[a:", "a:", "sk-", "1.", "http:/", "/"])
def test_no_words_take_long(piece: str) -> None:
    began = time.process_time()
    without_addresses(piece * 100_000, 8000)
    assert time.process_time() - began < 1.0
