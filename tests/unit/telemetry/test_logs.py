"""A log that no stranger can flood, forge or block."""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Iterator

import pytest

from deadlinemesh.telemetry import logs
from deadlinemesh.telemetry.logs import BURST, LOST, MOST_WAITING, BoundedHandler, JsonFormatter, TextFormatter, cut


class Log:
    """A logger with a handler of its own, on a clock that stands still."""

    def __init__(self, stream: io.StringIO, formatter: logging.Formatter) -> None:
        self.now = 0.0
        self.stream = stream
        self.handler = BoundedHandler(stream, lambda: self.now)
        self.handler.setFormatter(formatter)
        self.logger = logging.Logger("test", logging.DEBUG)
        self.logger.addHandler(self.handler)

    def lines(self) -> list[str]:
        """All that was written, once the log is closed."""
        self.handler.close()
        return self.stream.getvalue().splitlines()


@pytest.fixture
def log() -> Log:
    return Log(io.StringIO(), TextFormatter())


@pytest.fixture(autouse=True)
def lost() -> Iterator[None]:
    before = LOST.copy()
    LOST.clear()
    yield
    LOST.clear()
    LOST.update(before)


def test_a_line_cannot_be_forged(log: Log) -> None:
    log.logger.warning("a peer sent %s", "nonsense\n2026-01-01 ERROR deadlinemesh stolen\r\x1b[2J\x9b\u2028\u202e")
    first, second = log.lines()
    assert first.endswith("WARNING test a peer sent nonsense")
    assert second == "    2026-01-01 ERROR deadlinemesh stolen\\x0d\\x1b[2J\\x9b\\u2028\\u202e"


def test_a_json_line_stays_one_line() -> None:
    log = Log(io.StringIO(), JsonFormatter())
    try:
        raise ValueError("broken\nin two\x1b")
    except ValueError:
        log.logger.exception("a peer sent %s", "a\nb\x1b")
    (line,) = log.lines()
    told = json.loads(line)
    assert told["message"] == "a peer sent a\n    b\\x1b"
    assert told["exception"].endswith("ValueError: broken\n    in two\\x1b")


def test_long_lines_and_messages_are_cut(log: Log) -> None:
    log.logger.warning("%s", "\n".join(["x" * 90_000] * 1000))
    lines = log.lines()
    assert len(lines) == logs.MOST_LINES + 1
    assert max(map(len, lines)) < logs.LONGEST_LINE + 50


def test_strangers_words_are_cut() -> None:
    assert cut("short") == "short"
    assert cut("x" * 8192) == "x" * 200 + "… (8192 characters)"


def test_too_many_of_a_kind_are_counted(log: Log) -> None:
    def refused() -> None:
        log.logger.warning("refused")

    for _ in range(BURST + 30):
        refused()
    log.logger.warning("of another kind")
    log.now += logs.EACH_S
    refused()
    refused()
    lines = log.lines()
    assert len(lines) == BURST + 3
    assert lines[-3].endswith("of another kind")
    assert lines[-2].endswith("refused (30 more of this kind were not logged)")
    assert lines[-1] == "1 more messages were not logged: there were too many of their kinds"
    assert LOST == {"rate": 31}


def test_debug_messages_have_no_rate(log: Log) -> None:
    for number in range(BURST + 30):
        log.logger.debug("%d", number)
    assert len(log.lines()) == BURST + 30


class Unread(io.StringIO):
    """A stream whose reader is away until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = threading.Event()
        self.reached = threading.Event()

    def write(self, text: str) -> int:
        self.reached.set()
        self.let_go.wait()
        return super().write(text)


def test_a_log_that_nobody_reads_blocks_nobody() -> None:
    stream = Unread()
    log = Log(stream, TextFormatter())
    log.logger.debug("first")
    stream.reached.wait()
    for number in range(MOST_WAITING + 7):
        log.logger.debug("%d", number)
    assert LOST == {"unread": 7}
    stream.let_go.set()
    lines = log.lines()
    assert "7 messages were not logged after the queue had filled: nobody read them" in lines


def test_closing_does_not_wait_for_a_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "CLOSES_WITHIN_S", 0.01)
    stream = Unread()
    log = Log(stream, TextFormatter())
    log.logger.warning("first")
    log.handler.close()
    stream.let_go.set()


def test_a_closed_stream_costs_nothing(log: Log) -> None:
    log.stream.close()
    log.logger.warning("first")
    log.handler.close()
