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
"""Milliseconds for the last export at the provider's shutdown.

A process that has drained must not wait for a collector that cannot be reached. Without this limit
the exporter tries for 10 s, and for 20 s if an export is already in progress.
"""


def metering_to(destination: str, service: str) -> MeterProvider | None:
    """Return a provider that sends the metrics of `service` to `destination`. Shut it down within
    `LAST_EXPORT` when the process ends.

    `off` gives None. `file:PATH` appends all metrics as one JSON object a line, every few seconds
    and at the end. `otlp` sends them to the collector that the standard OTEL_EXPORTER_OTLP_*
    variables name, as often as OTEL_METRIC_EXPORT_INTERVAL says.

    Raises ValueError for any other destination, and for `otlp` if the OTLP exporter is not
    installed.
    """
    if destination == "off":
        return None
    reader = _reader(destination)
    resource = Resource.create({"service.name": service, "service.namespace": "deadlinemesh"})
    return MeterProvider([reader], resource=resource)


def _reader(destination: str) -> MetricReader:
    # No `Unhurried` here, unlike for spans. There are as many spans as calls, most of them when a
    # burst of runs ends. There are only as many metrics as sets of labels, and the policy limits
    # those: 200 take 4 ms of the interpreter, once a minute.
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
"""Milliseconds between two lines of the file: short enough for live viewing. Each line contains all
metrics since the start again.
"""


def _line(metrics: MetricsData) -> str:
    return metrics.to_json(indent=None) + "\n"
