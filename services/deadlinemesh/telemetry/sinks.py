"""The sinks of events: the log, a file of JSON lines, counters, OpenTelemetry's metrics."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from opentelemetry.metrics import Meter

from deadlinemesh.admission import Wait
from deadlinemesh.deadline import Deferred
from deadlinemesh.telemetry.events import (
    CacheUsed,
    CacheWritten,
    CallEnded,
    CallRefused,
    ConnectionClosed,
    Event,
    FellBack,
    LimitHit,
    LoopLagged,
    MalformedRemaining,
    OrphanReported,
    PolicyInForce,
    PolicyRefused,
    Retried,
    RetryRefused,
    Sink,
)
from deadlinemesh.telemetry.logs import cut

__all__ = ["CountingSink", "JsonLinesSink", "LogSink", "MetricsSink", "WhenIdle"]

_LOG = logging.getLogger("deadlinemesh")


class LogSink:
    """Logs the events that an operator should see as warnings: orphans, stalled event loops,
    malformed deadlines. Logs all others at debug level.
    """

    def record(self, event: Event) -> None:
        if isinstance(event, OrphanReported):
            _LOG.warning(
                "orphan at %s: tenant=%s run=%s age=%.3fs task=%s",
                *(event.hop, event.tenant_id, event.run_id, event.age, cut(event.task)),
            )
        elif isinstance(event, LoopLagged):
            _LOG.warning(
                "the event loop of %s stood still for %.3fs in %s: tenant=%s run=%s",
                *(event.hop, event.seconds, event.function or "something unknown"),
                *(event.tenant_id or "none", event.run_id or "none"),
            )
        elif isinstance(event, MalformedRemaining):
            _LOG.warning("ignored deadline-remaining-us %s sent to %s%s", cut(event.value), event.hop, event.method)
        elif _LOG.isEnabledFor(logging.DEBUG):
            _LOG.debug("%s %s", type(event).__name__, asdict(event))


class JsonLinesSink:
    """Appends every event to a file, as one JSON object a line. Its kind is the value
    of `event`.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def record(self, event: Event) -> None:
        self._file.write(_line(event))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _line(event: Event) -> str:
    # dataclasses.asdict would make deep copies, but events are flat and frozen.
    values = {field.name: getattr(event, field.name) for field in fields(event)}
    return json.dumps({"event": type(event).__name__, **values}) + "\n"


class WhenIdle:
    """Passes each event to every one of `sinks` once the event loop is idle.

    Each sink takes time for each event. When hundreds of runs end together, that would delay the
    end of the others. Orphans, stalls and malformed deadlines are passed on at once.
    """

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = tuple(sinks)
        self._deferred = Deferred()

    def record(self, event: Event) -> None:
        if type(event) in _URGENT:
            self._hand_on(event)
        else:
            self._deferred(self._hand_on, event)

    def flush(self) -> None:
        """Pass on now the events that still wait."""
        self._deferred.flush()

    def _hand_on(self, event: Event) -> None:
        for sink in self._sinks:
            sink.record(event)


_URGENT = frozenset({OrphanReported, LoopLagged, MalformedRemaining})


class CountingSink:
    """Counts events by kind and keeps them all, for tests and for inspection of a process."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.events: list[Event] = []

    def record(self, event: Event) -> None:
        self.counts[type(event).__name__] += 1
        self.events.append(event)


class MetricsSink:
    """Records metrics on instruments that `meter` makes. docs/operating.md lists them.

    Names follow the RPC semantic conventions where these have one; ours begin with `mesh.`. Tenants
    are not labels, because their number has no limit.
    """

    def __init__(self, meter: Meter) -> None:
        self._duration = meter.create_histogram(
            "rpc.server.call.duration",
            unit="s",
            explicit_bucket_boundaries_advisory=[
                *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30, 60, 120, 300)
            ],
        )
        self._waits = meter.create_histogram(
            "mesh.admission.wait",
            unit="s",
            description="How long claims on a bulkhead's slots waited",
            explicit_bucket_boundaries_advisory=[0, *(0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)],
        )
        self._lags = meter.create_histogram(
            "mesh.loop.lag",
            unit="s",
            description="How long an event loop stood still, where that was too long",
            explicit_bucket_boundaries_advisory=[0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10],
        )
        self._orphans = meter.create_counter("mesh.orphans", unit="{task}")
        self._closed = meter.create_counter("mesh.connections.closed", unit="{connection}")
        self._malformed = meter.create_counter("mesh.deadline.malformed", unit="{call}")
        self._retries = meter.create_counter("mesh.retries", unit="{attempt}", description="Made and refused")
        self._fallbacks = meter.create_counter("mesh.fallbacks", unit="{run}")
        self._limits = meter.create_counter(
            "mesh.limits.hit", unit="{call}", description="What exceeded a tenant's limit"
        )
        self._reads = meter.create_counter("mesh.cache.reads", unit="{call}")
        self._policy = meter.create_gauge(
            "mesh.policy.hash", description="The first 48 bits of the SHA-256 of the policy file in force"
        )
        self._policy_current = meter.create_gauge(
            "mesh.policy.current",
            description="1 where the policy in force is what the file says, 0 where that was refused",
        )
        self._policies_refused = meter.create_counter("mesh.policy.refused", unit="{reload}")
        self._writes = meter.create_counter("mesh.cache.writes", unit="{result}")

    def record(self, event: Event) -> None:
        if isinstance(event, CallEnded):
            labels = {"rpc.system.name": "grpc", "rpc.method": event.method.lstrip("/"), "mesh.tier": event.tier}
            labels["rpc.status_code"] = event.code
            if event.code != "OK":
                labels["error.type"] = event.cause or event.code
            self._duration.record(event.ended_at - event.started_at, labels)
        elif isinstance(event, CallRefused):
            labels = {"rpc.system.name": "grpc", "rpc.method": event.method.lstrip("/"), "mesh.tier": ""}
            labels |= {"rpc.status_code": event.code, "error.type": event.reason}
            self._duration.record(event.ended_at - event.started_at, labels)
        elif isinstance(event, OrphanReported):
            self._orphans.add(1, {"mesh.hop": event.hop})
        elif isinstance(event, ConnectionClosed):
            self._closed.add(1, {"mesh.hop": event.hop, "error.type": event.why})
        elif isinstance(event, LoopLagged):
            self._lags.record(event.seconds, {"mesh.hop": event.hop})
        elif isinstance(event, Wait):
            labels = {"mesh.bulkhead": event.bulkhead, "mesh.tier": event.tier, "mesh.wait.end": event.end.value}
            self._waits.record(event.seconds, labels)
        elif isinstance(event, MalformedRemaining):
            self._malformed.add(1, {"mesh.hop": event.hop})
        elif isinstance(event, (Retried, RetryRefused)):
            refused = event.refused if isinstance(event, RetryRefused) else ""
            labels = {"mesh.upstream": event.upstream, "error.type": event.why, "mesh.retry.refused": refused}
            self._retries.add(1, labels)
        elif isinstance(event, FellBack):
            self._fallbacks.add(1, {"mesh.upstream": event.upstream, "error.type": event.why})
        elif isinstance(event, LimitHit):
            self._limits.add(1, {"mesh.hop": event.hop, "mesh.limit": event.limit})
        elif isinstance(event, PolicyInForce):
            self._policy.set(int(event.digest or "0", 16))
            self._policy_current.set(1)
        elif isinstance(event, PolicyRefused):
            self._policies_refused.add(1)
            self._policy_current.set(0)
        elif isinstance(event, CacheUsed):
            found = event.problem or ("hit" if event.hit else "miss")
            self._reads.add(1, {"mesh.tool": event.tool, "mesh.cache.found": found})
        elif isinstance(event, CacheWritten):
            labels = {"mesh.tool": event.tool}
            if event.problem:
                labels["error.type"] = event.problem
            self._writes.add(1, labels)
