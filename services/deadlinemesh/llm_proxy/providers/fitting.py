"""Histories made to fit a context window.

Nobody but the provider can count a model's tokens. A request that is too long is refused whole, so this estimate errs
on the safe side, unlike the one for usage: one token for three bytes of UTF-8, and a part of the room is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from deadlinemesh.llm_proxy.conversation import Message, Role

__all__ = ["fitted", "room_for_input", "tokens_at_most"]

_SURE = 0.8
"""The share of the room that is used: identifiers and Latin take more tokens for their characters than English."""

_BYTES_PER_TOKEN = 3
_TOKENS_PER_MESSAGE = 6
_MARK = " […] "
_SHORTEST = 160
"""Characters below which nothing is shortened: less would say nothing."""


def room_for_input(context_tokens: int, max_output_tokens: int) -> int:
    """Tokens left for what the model reads. Output takes at most half the window, however much it was promised."""
    return int((context_tokens - min(max_output_tokens, context_tokens // 2)) * _SURE)


def tokens_at_most(text: str) -> int:
    """How many tokens `text` is taken for."""
    return -(-len(text.encode()) // _BYTES_PER_TOKEN)


def fitted(messages: Sequence[Message], room: int) -> tuple[Message, ...]:
    """`messages` within `room` tokens: first the oldest tool results are shortened, then the oldest exchanges left out,
    and at last whatever is longest is shortened too. The system's messages and the last question always stay.
    """
    kept = list(messages)
    for index, message in enumerate(kept):
        if message.role is Role.TOOL:
            _shorten(kept, index, room)
    while _total(kept) > room and (oldest := _oldest_exchange(kept)):
        del kept[oldest]
    for index in sorted(range(len(kept)), key=lambda i: len(kept[i].content), reverse=True):
        _shorten(kept, index, room)
    return tuple(kept)


def _total(messages: Sequence[Message]) -> int:
    return sum(map(_size, messages))


def _size(message: Message) -> int:
    calls = "".join(call.name + call.arguments_json for call in message.tool_calls)
    return _TOKENS_PER_MESSAGE + tokens_at_most(message.content + calls)


def _shorten(messages: list[Message], index: int, room: int) -> None:
    """Take as much out of the middle of one message as is too much in all."""
    excess = (_total(messages) - room) * _BYTES_PER_TOKEN
    content = messages[index].content
    if excess <= 0 or len(content) <= _SHORTEST:
        return
    length = max(_SHORTEST, len(content) - excess - len(_MARK.encode()))
    head = length * 2 // 3
    messages[index] = replace(messages[index], content=content[:head] + _MARK + content[head - length :])


def _oldest_exchange(messages: Sequence[Message]) -> slice | None:
    """The oldest message that may go, with the results of the calls it makes; None when none may."""
    last_question = max((i for i, m in enumerate(messages) if m.role is Role.USER), default=len(messages))
    for start, message in enumerate(messages):
        if message.role is Role.SYSTEM or start == last_question:
            continue
        end = start + 1
        while message.tool_calls and end < len(messages) and messages[end].role is Role.TOOL:
            end += 1
        return None if end >= len(messages) else slice(start, end)
    return None
