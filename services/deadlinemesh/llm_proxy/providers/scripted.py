"""The embedded model: deterministic, without key or network. Policy sets its speed.

It understands little, but enough to try out the mesh. It reads the prompt and the offered tools,
calls the tools that fit, several at once if needed, and reports their results.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import re
from collections.abc import AsyncGenerator
from dataclasses import replace

from deadlinemesh.llm_proxy.providers.intent import Wish, wishes
from deadlinemesh.llm_proxy.providers.tokens import estimated_tokens
from deadlinemesh.llm_proxy.providers.wording import Result, announcement, direct, parsed, summary
from deadlinemesh.policy.model import ScriptedModel
from deadlinemesh.vocabulary import (
    FinishReason,
    Message,
    ModelEvent,
    Role,
    TextDelta,
    ToolCall,
    ToolChoice,
    TurnFinished,
    TurnRequest,
    Writing,
)

__all__ = ["ScriptedProvider"]

_TOKEN = re.compile(r"\s*\S{1,6}|\s+")
"""One token: up to six characters of a word, with the space before it."""

_LONGEST_READ = 2000
"""Characters of a text that are read. Reading blocks the event loop for other calls."""

_MOST_RESULTS = 64
"""Tool results for a question that are read: the last ones."""


class ScriptedProvider:
    """Streams the turns of the scripted `model`.

    The same seed and the same request give the same text, calls and waits.
    """

    def __init__(self, model: ScriptedModel) -> None:
        self._model = model

    async def stream(self, turn: TurnRequest) -> AsyncGenerator[ModelEvent, None]:
        await asyncio.sleep(0)  # before and after: for a long history each part takes 10 ms
        fingerprint = _fingerprint(self._model.seed, turn)
        await asyncio.sleep(0)
        chance = random.Random(fingerprint)
        text, asked = _say(turn, chance)
        left = turn.max_output_tokens
        await asyncio.sleep(self._model.first_token * self._factor(chance))
        pieces = _TOKEN.findall(text)
        for index, piece in enumerate(pieces[:left]):
            if index:
                await self._write(1, chance)
            yield TextDelta(piece)
        left -= min(left, len(pieces))
        reason = FinishReason.TOOL_CALLS if asked else FinishReason.STOP
        for index, wish in enumerate(asked):
            arguments = json.dumps(wish.arguments, ensure_ascii=False)
            length = len(_TOKEN.findall(f"{wish.tool} {arguments}"))
            if length > left:
                reason = FinishReason.LENGTH
                break
            yield Writing()
            await self._write(length, chance)
            left -= length
            yield ToolCall(f"call_{fingerprint:016x}_{index}", wish.tool, arguments)
        if len(pieces) > turn.max_output_tokens:
            reason = FinishReason.LENGTH
        yield TurnFinished(reason, _tokens_read(turn), turn.max_output_tokens - left)

    async def aclose(self) -> None:
        """Do nothing: no connection is open."""

    async def _write(self, tokens: int, chance: random.Random) -> None:
        await asyncio.sleep(sum(self._model.per_token * self._factor(chance) for _ in range(tokens)))

    def _factor(self, chance: random.Random) -> float:
        """A random lognormal factor with median 1."""
        return chance.lognormvariate(0.0, self._model.jitter)


def _say(turn: TurnRequest, chance: random.Random) -> tuple[str, list[Wish]]:
    """The text of the turn and the calls after it."""
    question = _question(turn)
    prompt = turn.messages[question].content[:_LONGEST_READ] if question >= 0 else ""
    before, since = _results(turn, 0, question), _results(turn, question, len(turn.messages))
    may, must = turn.tool_choice is not ToolChoice.NONE, turn.tool_choice is ToolChoice.REQUIRED
    wanted = wishes(prompt, turn.tools, must=must)
    missing = [wish for wish in wanted if wish.key not in before and wish.key not in since]
    if may and missing:
        # A later step is asked for when the results of the earlier ones are there.
        now = [wish for wish in missing if wish.step == missing[0].step]
        return announcement(now), now
    if must and wanted and not since:
        return announcement(wanted), wanted
    results = list(since.values()) or [before[wish.key] for wish in wanted if wish.key in before]
    if results or missing:
        return summary(results, missing), []
    return direct(prompt, chance), []


def _question(turn: TurnRequest) -> int:
    """The index of the message to answer; -1 if there is none.

    A user's message directly after a tool's result, such as one to come to an end, is no new
    question.
    """
    roles = [None, *(message.role for message in turn.messages)]
    asked = (i for i, role in enumerate(roles[1:]) if role is Role.USER and roles[i] is not Role.TOOL)
    return max(asked, default=-1)


def _results(turn: TurnRequest, start: int, end: int) -> dict[tuple[str, str], Result]:
    """The results of calls in the messages from `start` to `end`, by `Wish.key`."""
    messages = turn.messages[max(start, 0) : end]
    calls = {call.id: call for message in messages for call in message.tool_calls}
    found = {}
    answered = [one for one in messages if one.role is Role.TOOL and one.tool_call_id in calls]
    for message in answered[-_MOST_RESULTS:]:
        call = calls[message.tool_call_id]
        given = parsed(call.arguments_json)
        # Arguments that are too deep or too long are not parsed. No wish has such arguments.
        arguments = given if isinstance(given, dict) else {}
        found[Wish(call.name, arguments, 0).key] = Result(call.name, arguments, message.content)
    return found


def _tokens_read(turn: TurnRequest) -> int:
    said = sum(estimated_tokens(message.content) for message in turn.messages)
    return said + sum(estimated_tokens(f"{tool.description}{json.dumps(tool.schema)}") for tool in turn.tools)


def _fingerprint(seed: int, turn: TurnRequest) -> int:
    # Without the parts that depend on the time left: else no request could be repeated.
    said = tuple(
        _beginning(message)
        for place, message in enumerate(turn.messages)
        if place == 0 or message.role is not Role.SYSTEM
    )
    digest = hashlib.sha256(repr((seed, replace(turn, messages=said, max_output_tokens=0))).encode()).digest()
    return int.from_bytes(digest[:8])


def _beginning(message: Message) -> Message:
    """`message` with only the part of its text that is read, and with the text's length."""
    text = message.content
    return message if len(text) <= _LONGEST_READ else replace(message, content=f"{text[:_LONGEST_READ]}{len(text)}")
