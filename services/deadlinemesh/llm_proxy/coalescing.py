"""A turn's events on their way to a reader that may be slower than the model."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing

from deadlinemesh.vocabulary import TextDelta, ToolCall, TurnEvent

__all__ = ["LARGEST_BACKLOG", "coalesced"]

LARGEST_BACKLOG = 4096
"""Characters that may wait for the reader. The turn is not read on while there are more."""


async def coalesced(events: AsyncGenerator[TurnEvent, None]) -> AsyncGenerator[TurnEvent, None]:
    """Yield `events` in order. Text deltas that arrive while the caller is at work become one.

    No event waits while the caller is ready for it. Closing the generator closes `events` before it returns.
    """
    backlog = _Backlog()
    filling = asyncio.create_task(backlog.fill(events), name="a model turn")
    try:
        while (event := await backlog.take()) is not None:
            yield event
        await filling  # raises the error that has ended the turn
    finally:
        if not filling.done():
            filling.cancel()
            await asyncio.wait((filling,))
        if not filling.cancelled():
            filling.exception()  # seen: else asyncio logs one of a turn that nobody waits for
        del filling  # the error has this frame in its traceback


class _Backlog:
    """The events that wait for the reader."""

    def __init__(self) -> None:
        self._events: deque[TurnEvent] = deque()
        self._size = 0
        self._over = False
        self._arrived, self._taken = asyncio.Event(), asyncio.Event()

    async def fill(self, events: AsyncGenerator[TurnEvent, None]) -> None:
        """Add `events` until their end, waiting for the reader where it is far behind."""
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
        """Wait for an event and take it, with all the text behind it if it is text. None at their end."""
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
