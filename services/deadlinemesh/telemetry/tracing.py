"""Switches OpenTelemetry's tracing on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter, SpanExportResult

__all__ = ["DIRECT", "tracing_to"]

DIRECT: Any = (("grpc.enable_http_proxy", 0),)
"""Channel options that forbid a proxy: a collector is called directly, like every hop."""


def tracing_to(destination: str, hop: str) -> TracerProvider | None:
    """Return a provider that sends the spans of `hop` to `destination`. Shut it down when the
    process ends.

    `off` gives None. `file:PATH` appends one JSON object a line. `otlp` sends to the collector that
    the standard OTEL_EXPORTER_OTLP_* variables name.

    Raises ValueError for any other destination, and for `otlp` if the OTLP exporter is not
    installed.
    """
    if destination == "off":
        return None
    provider = TracerProvider(resource=Resource.create({"service.name": hop, "service.namespace": "deadlinemesh"}))
    # Large enough for a burst of ending calls. A full batch would be exported at once, during the
    # burst and on the same interpreter.
    processor = BatchSpanProcessor(_exporter(destination), max_queue_size=1 << 16, max_export_batch_size=1 << 13)
    provider.add_span_processor(processor)
    trace.set_tracer_provider(provider)
    return provider


class Unhurried(SpanExporter):
    """Exports in small pieces, and leaves the interpreter to the event loop between them.

    A thread turns a batch into text. As long as that lasts, it takes every other turn of the
    interpreter, so calls that end meanwhile end half as fast.
    """

    def __init__(self, exporter: SpanExporter, piece: int, pause: Callable[[float], None] = time.sleep) -> None:
        self._exporter = exporter
        self._piece = piece
        self._pause = pause

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export `spans`. The first piece that fails ends the export."""
        for first in range(0, len(spans), self._piece):
            if first:
                self._pause(_PAUSE)
            result = self._exporter.export(spans[first : first + self._piece])
            if result is not SpanExportResult.SUCCESS:
                return result
        return SpanExportResult.SUCCESS

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Call the exporter's own `force_flush`."""
        return self._exporter.force_flush(timeout_millis)

    def shutdown(self) -> None:
        """Close the exporter."""
        self._exporter.shutdown()


_PAUSE = 0.003
"""Seconds between two pieces: enough for the due work of the event loop to run."""


def _exporter(destination: str) -> SpanExporter:
    kind, _, path = destination.partition(":")
    if kind == "file" and path:
        # A piece takes about a millisecond.
        return Unhurried(ConsoleSpanExporter(out=Path(path).open("a", encoding="utf-8"), formatter=_line), piece=8)
    if destination == "otlp":
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        except ImportError:
            raise ValueError(
                "traces: otlp needs the package opentelemetry-exporter-otlp-proto-grpc: "
                'pip install "deadline-mesh[otlp]"'
            ) from None
        return Unhurried(OTLPSpanExporter(channel_options=DIRECT), piece=128)  # one request each
    raise ValueError(f"traces: {destination!r} is not one of off, file:PATH, otlp")


def _line(span: ReadableSpan) -> str:
    return str(span.to_json(indent=None)) + "\n"
