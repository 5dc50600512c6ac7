"""Switches OpenTelemetry's metrics on."""

from __future__ import annotations

from pathlib import Path

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    ConsoleMetricExporter,
    MetricReader,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import Resource

from deadlinemesh.telemetry.tracing import DIRECT

__all__ = ["LAST_EXPORT", "metering_to"]

LAST_EXPORT = 5_000.0
"""Milliseconds for the last export when the provider is shut down: a collector that nobody reaches must not keep a process that has
drained for the 10 s that the exporter would try by itself, and twice that if it is just trying."""


def metering_to(destination: str, service: str) -> MeterProvider | None:
    """A provider that sends the metrics of `service` to `destination`; shut it down within `LAST_EXPORT` when the process ends.

    `off` gives None. `file:PATH` appends all metrics as one JSON object a line, every few seconds and at the end. `otlp` sends them
    to the collector that the standard OTEL_EXPORTER_OTLP_* variables name, as often as OTEL_METRIC_EXPORT_INTERVAL says. Raises
    ValueError for anything else, and where the OTLP exporter is not installed.
    """
    if destination == "off":
        return None
    reader = _reader(destination)
    resource = Resource.create({"service.name": service, "service.namespace": "deadlinemesh"})
    return MeterProvider([reader], resource=resource)


def _reader(destination: str) -> MetricReader:
    # Nothing here is `Unhurried`, as spans are: of those there are as many as calls, and most when a burst of runs ends. Of metrics
    # there are as many as sets of labels, which policy bounds: 200 take 4 ms of the interpreter, once a minute.
    kind, _, path = destination.partition(":")
    if kind == "file" and path:
        return PeriodicExportingMetricReader(
            ConsoleMetricExporter(out=Path(path).open("a", encoding="utf-8"), formatter=_line), _BETWEEN_LINES
        )
    if destination == "otlp":
        try:
            from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
        except ImportError:
            raise ValueError(
                "metrics: otlp needs the package opentelemetry-exporter-otlp-proto-grpc: "
                'pip install "deadline-mesh[otlp]"'
            ) from None
        return PeriodicExportingMetricReader(OTLPMetricExporter(channel_options=DIRECT))
    raise ValueError(f"metrics: {destination!r} is not one of off, file:PATH, otlp")


_BETWEEN_LINES = 5_000.0
"""Milliseconds: short enough for one who looks, and each line has everything since the start again."""


def _line(metrics: MetricsData) -> str:
    return metrics.to_json(indent=None) + "\n"
