"""Where events go: the log, a file of JSON lines, OpenTelemetry's metrics."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from dataclasses import asdict, fields
from pathlib import Path

from opentelemetry import metrics

from deadlinemesh.telemetry.events import CallEnded, Event, MalformedRemaining, OrphanReported

__all__ = ["CountingSink", "JsonLinesSink", "LogSink", "MetricsSink"]

_LOG = logging.getLogger("deadlinemesh")


class LogSink:
    """Logs what an operator should see: orphans and peers that send nonsense as warnings, ends of calls at debug level."""

    def record(self, event: Event) -> None:
        if isinstance(event, OrphanReported):
            _LOG.warning(
                "orphan at %s: tenant=%s run=%s age=%.3fs task=%s",
                *(event.hop, event.tenant_id, event.run_id, event.age, event.task),
            )
        elif isinstance(event, MalformedRemaining):
            _LOG.warning("ignored deadline-remaining-us %s sent to %s%s", event.value, event.hop, event.method)
        elif _LOG.isEnabledFor(logging.DEBUG):
            _LOG.debug("%s %s", type(event).__name__, asdict(event))


class JsonLinesSink:
    """Appends every event to a file, one JSON object a line with its kind as `event`.

    Writing waits for a quarter of a second, so that a burst of endings is not slowed by its own record; `close` writes the rest.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")
        self._events: list[Event] = []

    def record(self, event: Event) -> None:
        if not self._events:
            asyncio.get_running_loop().call_later(_WRITE_AFTER, self._write)
        self._events.append(event)

    def close(self) -> None:
        """Write what is left, and close the file."""
        self._file.writelines(_line(event) for event in self._events)
        self._file.close()

    def _write(self) -> None:
        events, self._events = self._events[:_AT_ONCE], self._events[_AT_ONCE:]
        self._file.writelines(_line(event) for event in events)
        self._file.flush()
        if self._events:
            asyncio.get_running_loop().call_later(_BREATH, self._write)


_WRITE_AFTER = 0.25
_AT_ONCE = 25
"""Events that are written before other work has its turn again: about half a millisecond."""
_BREATH = 0.005


def _line(event: Event) -> str:
    # dataclasses.asdict would copy deeply what is flat and frozen.
    values = {field.name: getattr(event, field.name) for field in fields(event)}
    return json.dumps({"event": type(event).__name__, **values}) + "\n"


class CountingSink:
    """Counts events by kind and keeps the last of each, for tests and for asking a process how it is."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.events: list[Event] = []

    def record(self, event: Event) -> None:
        self.counts[type(event).__name__] += 1
        self.events.append(event)


class MetricsSink:
    """Feeds OpenTelemetry's metrics API; without an SDK that costs next to nothing.

    Names: RPC semantic conventions where they have one, ours under `mesh.`. Tenants are not labels: they have no bound.
    """

    def __init__(self) -> None:
        meter = metrics.get_meter("deadlinemesh")
        self._duration = meter.create_histogram(
            "rpc.server.call.duration",
            unit="s",
            explicit_bucket_boundaries_advisory=[
                *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30, 60, 120, 300)
            ],
        )
        self._orphans = meter.create_counter("mesh.orphans", unit="{task}")
        self._malformed = meter.create_counter("mesh.deadline.malformed", unit="{call}")

    def record(self, event: Event) -> None:
        if isinstance(event, CallEnded):
            labels = {"rpc.system.name": "grpc", "rpc.method": event.method.lstrip("/"), "mesh.tier": event.tier}
            labels["rpc.status_code"] = event.code
            if event.code != "OK":
                labels["error.type"] = event.cause or event.code
            self._duration.record(event.ended_at - event.started_at, labels)
        elif isinstance(event, OrphanReported):
            self._orphans.add(1, {"mesh.hop": event.hop})
        elif isinstance(event, MalformedRemaining):
            self._malformed.add(1, {"mesh.hop": event.hop})
