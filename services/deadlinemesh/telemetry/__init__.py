"""Events: services record each one once, and sinks turn them into logs, lines and metrics.

events.py       the events, and `Telemetry`: it passes them to sinks
sinks.py        the sinks: log, JSON lines, counters, metrics
logs.py         handlers and formatters of the log, with limits
tracing.py      switches OpenTelemetry's tracing on
metering.py     switches OpenTelemetry's metrics on
"""

from deadlinemesh.telemetry.events import (
    CacheUsed,
    CacheWritten,
    CallEnded,
    CallRefused,
    CallStarted,
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
    RunEnded,
    Sink,
    Telemetry,
)
from deadlinemesh.telemetry.sinks import CountingSink, JsonLinesSink, LogSink, MetricsSink, WhenIdle

__all__ = [
    "CacheUsed",
    "CacheWritten",
    "CallEnded",
    "CallRefused",
    "CallStarted",
    "ConnectionClosed",
    "CountingSink",
    "Event",
    "FellBack",
    "JsonLinesSink",
    "LimitHit",
    "LogSink",
    "LoopLagged",
    "MalformedRemaining",
    "MetricsSink",
    "OrphanReported",
    "PolicyInForce",
    "PolicyRefused",
    "Retried",
    "RetryRefused",
    "RunEnded",
    "Sink",
    "Telemetry",
    "WhenIdle",
]
