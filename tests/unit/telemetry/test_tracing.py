"""Spans leave the process without slowing what it does."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import pytest
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from deadlinemesh.telemetry.tracing import Unhurried, tracing_to


class Exporter(SpanExporter):
    """Keeps what it is given, piece by piece, and fails from piece `fails_at` on."""

    def __init__(self, fails_at: int = 1000) -> None:
        self.pieces: list[Sequence[Any]] = []
        self.closed = False
        self._fails_at = fails_at

    def export(self, spans: Sequence[Any]) -> SpanExportResult:
        self.pieces.append(spans)
        return SpanExportResult.FAILURE if len(self.pieces) >= self._fails_at else SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self.closed = True


@pytest.mark.parametrize("count", [0, 1, 8, 9, 100])
def test_every_span_is_exported_once_in_order_with_a_pause_between_pieces(count: int) -> None:
    exporter, pauses = Exporter(), list[float]()
    spans: list[Any] = list(range(count))
    assert Unhurried(exporter, 8, pauses.append).export(spans) is SpanExportResult.SUCCESS
    assert [span for piece in exporter.pieces for span in piece] == spans
    assert all(len(piece) <= 8 for piece in exporter.pieces)
    assert len(pauses) == max(0, len(exporter.pieces) - 1)


def test_a_piece_that_fails_is_the_last() -> None:
    exporter = Exporter(fails_at=2)
    spans: list[Any] = list(range(100))
    assert Unhurried(exporter, 8, lambda seconds: None).export(spans) is SpanExportResult.FAILURE
    assert len(exporter.pieces) == 2


def test_it_is_closed_with_its_exporter() -> None:
    exporter = Exporter()
    Unhurried(exporter, 8).shutdown()
    assert exporter.closed


@pytest.mark.parametrize("destination", ["", "file", "file:", "stdout", "jaeger:6831"])
def test_a_destination_that_is_none_is_named(destination: str) -> None:
    with pytest.raises(ValueError, match="is not one of off, file:PATH, otlp"):
        tracing_to(destination, "hop-a")


def test_without_the_exporter_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    with pytest.raises(ValueError, match=r'traces: otlp needs .*"deadline-mesh\[otlp\]"'):
        tracing_to("otlp", "hop-a")
