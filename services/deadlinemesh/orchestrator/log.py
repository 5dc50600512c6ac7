"""The events of a run, in order and numbered."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from sys import getsizeof

from deadlinemesh.orchestrator.events import (
    PhaseChanged,
    RunEvent,
    RunFinished,
    Timed,
    ToolCallFinished,
    ToolCallProgress,
    ToolCallStarted,
)
from deadlinemesh.vocabulary import Message, TextDelta, ToolCall

__all__ = ["COMPACT_EVERY", "OBJECT_BYTES", "PIECE", "EventLog", "Reader", "size_of"]

OBJECT_BYTES = 200
"""Bytes of an event or a message without its text, roughly."""

PIECE = 4096
"""Characters that adjacent text deltas may have together to become one event."""

COMPACT_EVERY = 256
"""Events between two compactions."""


class EventLog:
    """The events of one run.

    Adjacent text deltas are joined every COMPACT_EVERY events. The joined event has the number of
    its last part. A delta that an open reader has read is never joined with one that it has not
    read.
    """

    def __init__(self) -> None:
        self.size = 0
        """Bytes of all events, roughly."""
        self._events: list[Timed] = []
        self._numbers: list[int] = []
        self._last = 0
        self._compacted = 0
        self._positions: Counter[int] = Counter()

    @property
    def events(self) -> Sequence[Timed]:
        """All events so far."""
        return self._events

    def append(self, timed: Timed) -> int:
        """Add an event. Returns its number, from 1."""
        self._last += 1
        self._events.append(timed)
        self._numbers.append(self._last)
        self.size += size_of(timed.event)
        if len(self._events) - self._compacted >= COMPACT_EVERY:
            self._compact(self._compacted)
        return self._last

    @contextmanager
    def reader(self, after: int = 0) -> Iterator[Reader]:
        """Context manager of a reader for the events with numbers above `after`."""
        reader = Reader(self, after)
        self._positions[after] += 1
        try:
            yield reader
        finally:
            self._leave(reader.position)

    def compact(self) -> None:
        """Join all adjacent text deltas."""
        self._compact(0)

    def _after(self, number: int) -> Sequence[Timed]:
        return self._events[bisect_right(self._numbers, number) :]

    def _move(self, before: int) -> int:
        self._leave(before)
        self._positions[self._last] += 1
        return self._last

    def _leave(self, position: int) -> None:
        self._positions[position] -= 1
        if not self._positions[position]:
            del self._positions[position]

    def _compact(self, start: int) -> None:
        events = self._events[start:]
        groups: list[list[Timed]] = []
        numbers: list[int] = []
        length = 0  # of the last group's text
        for number, timed in zip(self._numbers[start:], events, strict=True):
            text = _text(timed)
            if text and length and length + len(text) <= PIECE and numbers[-1] not in self._positions:
                groups[-1].append(timed)
                numbers[-1] = number
                length += len(text)
            else:
                groups.append([timed])
                numbers.append(number)
                length = len(text)
        joined = [_joined(group) for group in groups]
        self.size += sum(size_of(timed.event) for timed in joined) - sum(size_of(timed.event) for timed in events)
        self._events[start:], self._numbers[start:] = joined, numbers
        self._compacted = len(self._events)


class Reader:
    """The position of one call in an `EventLog`."""

    __slots__ = ("_log", "position")

    def __init__(self, log: EventLog, after: int) -> None:
        self._log = log
        self.position = after
        """Number of the last event read."""

    def read(self) -> Sequence[Timed]:
        """Return the events since the last call. May be empty."""
        events = self._log._after(self.position)
        self.position = self._log._move(self.position)
        return events


def _text(timed: Timed) -> str:
    return timed.event.text if isinstance(timed.event, TextDelta) else ""


def _joined(group: Sequence[Timed]) -> Timed:
    if len(group) == 1:
        return group[0]
    return Timed(group[-1].elapsed, TextDelta("".join(map(_text, group))))


def size_of(kept: Message | RunEvent) -> int:
    """The bytes of an event or a message, roughly.

    Text beyond Latin letters takes two or four bytes per character.
    """
    match kept:
        case Message():
            data = 0 if kept.provider_data is None else len(kept.provider_data.data)
            return getsizeof(kept.content) + data + OBJECT_BYTES + sum(map(_size_of_call, kept.tool_calls))
        case TextDelta():
            return getsizeof(kept.text) + OBJECT_BYTES
        case ToolCallProgress():
            return getsizeof(kept.message) + OBJECT_BYTES
        case ToolCallStarted():
            return _size_of_call(kept.call) + OBJECT_BYTES
        case ToolCallFinished():
            return getsizeof(kept.content) + OBJECT_BYTES
        case PhaseChanged():
            return getsizeof(kept.spent) + 2 * OBJECT_BYTES
        case RunFinished():
            return getsizeof(kept.answer) + getsizeof(kept.detail) + 4 * OBJECT_BYTES
        case _:
            return OBJECT_BYTES


def _size_of_call(call: ToolCall) -> int:
    data = 0 if call.provider_data is None else len(call.provider_data.data)
    return getsizeof(call.arguments_json) + getsizeof(call.id) + getsizeof(call.name) + data + OBJECT_BYTES
