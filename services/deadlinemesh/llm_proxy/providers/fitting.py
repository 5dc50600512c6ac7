"""Histories made to fit a context window.

Nobody but the provider can count a model's tokens. A request that is too long is refused whole, so this estimate errs
on the safe side, unlike the one for usage: one token for three bytes of UTF-8, and a part of the room is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from deadlinemesh.vocabulary import Message, Role

__all__ = ["fitted", "room_for_input", "room_for_output", "tokens_at_most"]

_SURE = 0.8
"""The share of the room that is used: identifiers and Latin take more tokens for their characters than English."""

_BYTES_PER_TOKEN = 3
_TOKENS_PER_MESSAGE = 6
_MARK = " […] "
_SHORTEST = 160
"""Characters below which nothing is shortened: less would say nothing."""


def room_for_output(context_tokens: int, max_output_tokens: int) -> int:
    """Tokens that the model may write: at most half the window, however much it was promised."""
    return min(max_output_tokens, context_tokens // 2)


def room_for_input(context_tokens: int, max_output_tokens: int) -> int:
    """Tokens left for what the model reads."""
    return int((context_tokens - room_for_output(context_tokens, max_output_tokens)) * _SURE)


def tokens_at_most(text: str) -> int:
    """How many tokens `text` is taken for."""
    return -(-len(text.encode()) // _BYTES_PER_TOKEN)


def fitted(messages: Sequence[Message], room: int) -> tuple[Message, ...]:
    """`messages` within `room` tokens: first the oldest tool results are shortened, then the oldest exchanges left out,
    and at last whatever is longest is shortened too. The system's messages and the last question always stay.
    """
    kept = _Kept(messages, room)
    for index, message in enumerate(messages):
        if message.role is Role.TOOL:
            kept.shorten(index)
    kept.leave_out_oldest()
    for index in sorted(range(len(kept.messages)), key=lambda i: len(kept.messages[i].content), reverse=True):
        kept.shorten(index)
    return tuple(kept.messages)


class _Kept:
    """Messages, and by how many tokens they are too many. Each is measured once, and again when it was shortened: there may be
    thousands, and all of this is done on the event loop.
    """

    def __init__(self, messages: Sequence[Message], room: int) -> None:
        self.messages = list(messages)
        self._sizes = [_size(message) for message in messages]
        self._excess = sum(self._sizes) - room

    def shorten(self, index: int) -> None:
        """Take as much out of the middle of one message as is too much in all."""
        message = self.messages[index]
        if self._excess <= 0 or len(message.content) <= _SHORTEST:
            return
        excess = self._excess * _BYTES_PER_TOKEN
        length = max(_SHORTEST, len(message.content) - excess - len(_MARK.encode()))
        head = length * 2 // 3
        content = message.content[:head] + _MARK + message.content[head - length :]
        self.messages[index] = replace(message, content=content)
        size = _size(self.messages[index])
        self._excess += size - self._sizes[index]
        self._sizes[index] = size

    def leave_out_oldest(self) -> None:
        """Leave out the oldest messages that may go, each with the results of the calls it makes, while there is too much."""
        left: list[int] = []
        last_question = max((i for i, m in enumerate(self.messages) if m.role is Role.USER), default=None)
        # The system may have the last word, as on the time that is left.
        last = max((i for i, m in enumerate(self.messages) if m.role is not Role.SYSTEM), default=0)
        start = 0
        while self._excess > 0 and start < len(self.messages):
            if self.messages[start].role is Role.SYSTEM or start == last_question:
                left.append(start)
                start += 1
                continue
            end = self._end_of_exchange(start)
            if end > last:
                break  # the end of the history is what the model is to answer
            self._excess -= sum(self._sizes[start:end])
            start = end
        left += range(start, len(self.messages))
        self.messages = [self.messages[index] for index in left]
        self._sizes = [self._sizes[index] for index in left]

    def _end_of_exchange(self, start: int) -> int:
        end = start + 1
        while self.messages[start].tool_calls and end < len(self.messages) and self.messages[end].role is Role.TOOL:
            end += 1
        return end


def _size(message: Message) -> int:
    calls = "".join(call.name + call.arguments_json for call in message.tool_calls)
    return _TOKENS_PER_MESSAGE + tokens_at_most(message.content + calls)
