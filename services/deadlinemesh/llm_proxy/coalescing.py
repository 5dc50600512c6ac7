"""A buffer between a turn's events and a reader that may be slower than the model."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing

from deadlinemesh.vocabulary import TextDelta, ToolCall, TurnEvent

__all__ = ["LARGEST_BACKLOG", "coalesced"]

LARGEST_BACKLOG = 4096
"""Characters that may wait for the reader. While there are more, the turn is not read further."""


async def coalesced(events: AsyncGenerator[TurnEvent, None]) -> AsyncGenerator[TurnEvent, None]:
    """Yield `events` in order. Text deltas that arrive while the caller is busy are joined.

    No event waits while the caller is ready for it. Closing the generator closes `events` first.
    """
    backlog = _Backlog()
    filling = asyncio.create_task(backlog.fill(events), name="a model turn")
    try:
        while (event := await backlog.take()) is not None:
            yield event
        await filling  # raises the error that ended the turn, if any
    finally:
        if not filling.done():
            filling.cancel()
            await asyncio.wait((filling,))
        if not filling.cancelled():
            filling.exception()  # marks it as retrieved: else asyncio logs it
        del filling  # the error's traceback refers to this frame


class _Backlog:
    """The events that wait for the reader, in order."""

    def __init__(self) -> None:
        self._events: deque[TurnEvent] = deque()
        self._size = 0
        self._over = False
        self._arrived, self._taken = asyncio.Event(), asyncio.Event()

    async def fill(self, events: AsyncGenerator[TurnEvent, None]) -> None:
        """Add `events` until their end. Wait for the reader while it is far behind."""
        try:
            async with aclosing(events):
                async for event in events:
                    self._events.append(event)
                    self._size += _size(event)
                    self._arrived.set()
                    while self._size > LARGEST_BACKLOG:
                        self._taken.clear()
                        await self._taken.wait()
        finally:
            self._over = True
            self._arrived.set()

    async def take(self) -> TurnEvent | None:
        """Wait for an event and take it. Text is taken with all text directly after it.

        Returns None after the last event.
        """
        while not self._events:
            if self._over:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        event = self._events.popleft()
        if isinstance(event, TextDelta) and self._events:
            pieces = [event.text]
            while self._events and isinstance(following := self._events[0], TextDelta):
                pieces.append(following.text)
                del self._events[0]
            event = TextDelta("".join(pieces))
            self._size -= len(pieces) - 1
        self._size -= _size(event)
        self._taken.set()
        return event


def _size(event: TurnEvent) -> int:
    match event:
        case TextDelta(text):
            return 1 + len(text)
        case ToolCall():
            return 1 + len(event.arguments_json)
    return 1
