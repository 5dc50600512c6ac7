"""The log of a service. A peer cannot flood it, forge its lines, or block the service with it.

Messages of one kind come from one place in the code, and each kind has a rate limit. Each line has
a length limit, and control characters are escaped.

A separate thread writes the log, behind a bounded queue. If nothing reads the output, messages are
lost and counted, and no caller waits.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO

from opentelemetry.metrics import CallbackOptions, Meter, Observation

__all__ = ["LOST", "BoundedHandler", "JsonFormatter", "Lines", "TextFormatter", "count_lost", "cut"]

WORDS = 200
"""Characters of a peer's text in a line."""

LONGEST_LINE, MOST_LINES = 1000, 60
"""Characters of a line, and lines of one message: a traceback has several lines."""

BURST, EACH_S = 20, 1.0
"""Messages of one kind that are written at once, and seconds until one more. DEBUG messages have no
limit.
"""

MOST_WAITING = 1000
"""Messages that wait to be written; more are lost."""

CLOSES_WITHIN_S = 1.0
"""Seconds for the last messages to be written when the log is closed."""

LOST: Counter[str] = Counter()
"""Messages of this process that were not written: `rate` counts those above a kind's rate, `unread`
those that met a full queue.
"""

_ESCAPED = {
    code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    for code in (*range(32), *range(127, 160), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
    if code not in (9, 10)
}


def count_lost(meter: Meter) -> None:
    """Have `meter` report LOST as `mesh.log.lost`."""

    def observed(_: CallbackOptions) -> list[Observation]:
        return [Observation(count, {"error.type": why}) for why, count in LOST.items()]

    meter.create_observable_counter("mesh.log.lost", [observed], "{message}", "Messages that were not logged")


def cut(words: object, most: int = WORDS) -> str:
    """A peer's text for a line of the log, cut to `most` characters."""
    text = str(words)
    return text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"


def _bounded(text: str) -> str:
    # Lines after the first are indented, so they cannot pass for messages of their own.
    lines = text.split("\n", MOST_LINES)
    if len(lines) > MOST_LINES:
        lines[MOST_LINES:] = ["…"]
    return "\n    ".join(cut(line, LONGEST_LINE) for line in lines).translate(_ESCAPED)


class TextFormatter(logging.Formatter):
    """Formats a message for people. Only its first line begins at the margin."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Return the message's lines."""
        return _bounded(super().format(record))


class JsonFormatter(logging.Formatter):
    """Formats a message as one JSON object on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname,
            "logger": record.name,
            "message": _bounded(record.getMessage()),
        }
        if record.exc_info:
            line["exception"] = _bounded(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False)


class _Kind:
    """The rate limit of one place in the code."""

    __slots__ = ("left", "lost", "seen_at")

    def __init__(self, now: float) -> None:
        self.left, self.seen_at, self.lost = float(BURST), now, 0

    def admits(self, now: float) -> bool:
        """True if one more message may be written now. Takes that place, or counts the message as
        lost.
        """
        self.left = min(float(BURST), self.left + (now - self.seen_at) / EACH_S)
        self.seen_at = now
        if self.left < 1:
            self.lost += 1
            return False
        self.left -= 1
        return True

    def told(self) -> str:
        """Return the note on lost messages to append to this message; empty if none was lost.
        Resets the count.
        """
        lost, self.lost = self.lost, 0
        return f" ({lost} more of this kind were not logged)" if lost else ""


class Lines:
    """Writes lines to `stream` in a thread, behind a bounded queue. The caller never waits for a
    slow reader.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._unread = 0
        self._waiting: queue.Queue[str | None] = queue.Queue(MOST_WAITING)
        self._writer = threading.Thread(target=self._write, name="log", daemon=True)
        self._writer.start()

    def put(self, text: str) -> None:
        """Write `text` and a line end. If the queue is full, the text is lost and counted."""
        try:
            self._waiting.put_nowait(text)
        except queue.Full:
            self._unread += 1
            LOST["unread"] += 1

    def close(self) -> None:
        """Return when all is written, or after CLOSES_WITHIN_S if nothing reads it."""
        with suppress(queue.Full):
            self._waiting.put_nowait(None)
        self._writer.join(CLOSES_WITHIN_S)

    def _write(self) -> None:
        while (text := self._waiting.get()) is not None:
            lost, self._unread = self._unread, 0
            if lost:
                text += f"\n{lost} messages were not logged after the queue had filled: nobody read them"
            with suppress(OSError, ValueError):  # the reader is gone
                self._stream.write(text + "\n")
                self._stream.flush()


class BoundedHandler(logging.Handler):
    """Writes to `stream` through `Lines`, with a rate limit for each kind. `clock`
    gives seconds.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._lines = Lines(stream)
        self._clock = clock
        self._kinds: dict[tuple[str, int], _Kind] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a message, if the rate limit of its kind permits it."""
        if record.levelno > logging.DEBUG:
            now = self._clock()
            kind = self._kinds.setdefault((record.pathname, record.lineno), _Kind(now))
            if not kind.admits(now):
                LOST["rate"] += 1
                return
            if more := kind.told():
                record = logging.makeLogRecord(record.__dict__)
                record.msg, record.args = record.getMessage() + more, ()
        try:
            self._lines.put(self.format(record))
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Write a note on the lost messages and then the queued messages, as far as
        they are read.
        """
        lost = sum(kind.lost for kind in self._kinds.values())
        if lost:
            self._lines.put(f"{lost} more messages were not logged: there were too many of their kinds")
            self._kinds.clear()
        self._lines.close()
        super().close()
