"""Switches OpenTelemetry's tracing on."""

from __future__ import annotations

from pathlib import Path

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter

__all__ = ["tracing_to"]


def tracing_to(destination: str, hop: str) -> TracerProvider | None:
    """A provider that sends the spans of `hop` to `destination`; shut it down when the process ends.

    `off` gives None. `file:PATH` appends one JSON object a line. `otlp` sends to the collector that the standard
    OTEL_EXPORTER_OTLP_* variables name. Raises ValueError for anything else, and where the OTLP exporter is not installed.
    """
    if destination == "off":
        return None
    provider = TracerProvider(resource=Resource.create({"service.name": hop, "service.namespace": "deadlinemesh"}))
    # Room for a burst of ends: a full batch would be exported at once, in the middle of it and on the same interpreter.
    processor = BatchSpanProcessor(_exporter(destination), max_queue_size=1 << 16, max_export_batch_size=1 << 13)
    provider.add_span_processor(processor)
    trace.set_tracer_provider(provider)
    return provider


def _exporter(destination: str) -> SpanExporter:
    kind, _, path = destination.partition(":")
    if kind == "file" and path:
        return ConsoleSpanExporter(out=Path(path).open("a", encoding="utf-8"), formatter=_line)
    if destination == "otlp":
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        except ImportError:
            raise ValueError("traces: otlp needs the package opentelemetry-exporter-otlp-proto-grpc") from None
        exporter: SpanExporter = OTLPSpanExporter()
        return exporter
    raise ValueError(f"traces: {destination!r} is not one of off, file:PATH, otlp")


def _line(span: ReadableSpan) -> str:
    return str(span.to_json(indent=None)) + "\n"
