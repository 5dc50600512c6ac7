"""Fits histories into a model's context window.

Only the provider can count a model's tokens. A request that is too long is refused as a whole, so
this estimate errs on the safe side, unlike the one for usage: one token for three bytes of UTF-8,
and a share of the room stays unused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from deadlinemesh.vocabulary import Message, Role

__all__ = ["fitted", "room_for_input", "room_for_output", "tokens_at_most"]

_SURE = 0.8
"""Share of the room that is used. Identifiers and Latin need more tokens per character than
English."""

_BYTES_PER_TOKEN = 3
_TOKENS_PER_MESSAGE = 6
_MARK = " […] "
_SHORTEST = 160
"""Characters of a message that is never shortened further: less would be useless."""


def room_for_output(context_tokens: int, max_output_tokens: int) -> int:
    """Tokens that the model may write: `max_output_tokens`, but at most half of the window."""
    return min(max_output_tokens, context_tokens // 2)


def room_for_input(context_tokens: int, max_output_tokens: int) -> int:
    """Tokens of the window that are left for the model's input."""
    return int((context_tokens - room_for_output(context_tokens, max_output_tokens)) * _SURE)


def tokens_at_most(text: str) -> int:
    """The estimated tokens of `text`, on the safe side."""
    return -(-len(text.encode()) // _BYTES_PER_TOKEN)


def fitted(messages: Sequence[Message], room: int) -> tuple[Message, ...]:
    """`messages`, fitted into `room` tokens.

    First the oldest tool results are shortened. Then the oldest exchanges are left out. At last the
    longest messages are shortened too. The system's messages and the last question always stay.
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
    """The messages that are kept, and their excess over the room in tokens.

    Each message is measured once, and again after it was shortened. There may be thousands, and the
    event loop does all of this.
    """

    def __init__(self, messages: Sequence[Message], room: int) -> None:
        self.messages = list(messages)
        self._sizes = [_size(message) for message in messages]
        self._excess = sum(self._sizes) - room

    def shorten(self, index: int) -> None:
        """Cut the whole excess out of the middle of one message, as far as it is long enough."""
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
        """Leave out the oldest messages, with the results of their calls, until the rest fits."""
        left: list[int] = []
        last_question = max((i for i, m in enumerate(self.messages) if m.role is Role.USER), default=None)
        # The last message may be the system's, such as the one about the time left.
        last = max((i for i, m in enumerate(self.messages) if m.role is not Role.SYSTEM), default=0)
        start = 0
        while self._excess > 0 and start < len(self.messages):
            if self.messages[start].role is Role.SYSTEM or start == last_question:
                left.append(start)
                start += 1
                continue
            end = self._end_of_exchange(start)
            if end > last:
                break  # the model must answer the end of the history
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
