"""What the embedded model makes of a prompt and of tools: a line of JSON with the prompt, then one for each tool's schema.

The tools are such as a tool-runner would offer.
"""

from __future__ import annotations

import json
import random

from tests.fuzz.reading import json_lines

from deadlinemesh.llm_proxy.providers.choosing import asking, choice_schema
from deadlinemesh.llm_proxy.providers.scripted import _LONGEST_READ, _fingerprint, _say
from deadlinemesh.tool_runner.arguments import ArgumentsReader
from deadlinemesh.vocabulary import Message, Role, ToolCall, ToolChoice, ToolSpec, TurnRequest

JSON_LINES = True
NAMES = ("search_documents", "wait", "calculate", "lookup_customer")


def target(data: bytes) -> None:
    lines = list(json_lines(data))
    prompt = lines[0] if lines and isinstance(lines[0], str) else "Look up customer Globex and wait 5 seconds."
    prompt = prompt.encode(errors="replace").decode()  # no message holds lone surrogates
    tools = []
    for name, schema in zip(NAMES, lines[1:], strict=False):
        if isinstance(schema, dict) and _is_offered(schema):
            tools.append(ToolSpec(name, str(schema.get("description", "")), schema))
    for choice in ToolChoice:
        if tools or choice is not ToolChoice.REQUIRED:
            _check(TurnRequest("demo", (Message(Role.USER, prompt),), tuple(tools), choice, 64))


def _is_offered(schema: dict[str, object]) -> bool:
    try:
        ArgumentsReader(schema)
    except (ValueError, RecursionError):
        return False
    return isinstance(schema.get("properties", {}), dict)


def _check(turn: TurnRequest) -> None:

    json.dumps(choice_schema(turn))
    asking(turn, turn.messages)
    text, wishes = _say(turn, random.Random(_fingerprint(1, turn)))
    assert text
    assert len(text) < 500_000
    if turn.tool_choice is ToolChoice.NONE:
        assert not wishes
    if turn.tool_choice is ToolChoice.REQUIRED:
        assert wishes
    calls = tuple(
        ToolCall(f"call_{index}", wish.tool, json.dumps(wish.arguments, allow_nan=False))
        for index, wish in enumerate(wishes)
    )
    answers = (Message(Role.TOOL, turn.messages[0].content[:_LONGEST_READ], (), call.id) for call in calls)
    messages = (*turn.messages, Message(Role.ASSISTANT, text, calls), *answers)
    answered = TurnRequest(turn.model, messages, turn.tools, ToolChoice.AUTO, 64)
    assert _say(answered, random.Random(1))[0]
