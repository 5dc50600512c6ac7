"""A run's events by number, and readers that are behind."""

from __future__ import annotations

import pytest

from deadlinemesh.orchestrator.events import RunStarted, Timed
from deadlinemesh.orchestrator.log import COMPACT_EVERY, PIECE, EventLog
from deadlinemesh.vocabulary import TextDelta


def words(log: EventLog, *texts: str) -> None:
    for text in texts:
        log.append(Timed(0.0, TextDelta(text)))


def text_of(events: object) -> list[str]:
    return [one.event.text for one in events if isinstance(one.event, TextDelta)]  # type: ignore[attr-defined]


def test_events_are_numbered_from_one() -> None:
    log = EventLog()
    assert [log.append(Timed(0.0, RunStarted())) for _ in range(3)] == [1, 2, 3]


def test_reader_gets_each_event_once() -> None:
    log = EventLog()
    words(log, "a", "b")
    with log.reader() as reader:
        assert text_of(reader.read()) == ["a", "b"]
        assert text_of(reader.read()) == []
        words(log, "c")
        assert text_of(reader.read()) == ["c"]
        assert reader.position == 3


def test_reader_begins_after_a_number() -> None:
    log = EventLog()
    words(log, "a", "b", "c")
    with log.reader(after=2) as reader:
        assert text_of(reader.read()) == ["c"]


def test_compaction_joins_text_up_to_a_piece() -> None:
    log = EventLog()
    words(log, "x" * (PIECE - 1), "y", "z")
    log.append(Timed(1.0, RunStarted()))
    words(log, "a", "b")
    log.compact()
    assert text_of(log.events) == ["x" * (PIECE - 1) + "y", "z", "ab"]
    assert len(log.events) == 4


def test_compaction_keeps_a_readers_place() -> None:
    log = EventLog()
    words(log, "a", "b")
    with log.reader() as early, log.reader(after=2) as late:
        words(log, "c", "d")
        log.compact()
        assert text_of(late.read()) == ["cd"]
        assert text_of(early.read()) == ["ab", "cd"]


def test_closed_reader_keeps_no_place() -> None:
    log = EventLog()
    words(log, "a")
    with log.reader() as reader:
        reader.read()
    words(log, "b")
    log.compact()
    assert text_of(log.events) == ["ab"]


def test_long_log_compacts_by_itself() -> None:
    log = EventLog()
    words(log, *"x" * (2 * COMPACT_EVERY))
    assert len(log.events) == 2
    assert "".join(text_of(log.events)) == "x" * (2 * COMPACT_EVERY)


@pytest.mark.parametrize("compact", [False, True])
def test_size_counts_text_and_overhead(compact: bool) -> None:
    log = EventLog()
    words(log, *["x" * 100] * 100)
    if compact:
        before = log.size
        log.compact()
        assert log.size < before / 2
    assert log.size > 10_000
