"""Events become metrics, and metrics leave the process."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource

from deadlinemesh.admission import Wait, WaitEnd
from deadlinemesh.hosting.assembly import assemble
from deadlinemesh.hosting.settings import HopSettings
from deadlinemesh.telemetry import (
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
    MetricsSink,
    OrphanReported,
    PolicyInForce,
    PolicyRefused,
    Retried,
    RetryRefused,
    RunEnded,
    logs,
)
from deadlinemesh.telemetry.metering import metering_to

GENERATE = "/deadlinemesh.v1.LlmProxyService/Generate"
BY = ("acme", "run-1")
UNCOUNTED: list[Event] = [
    CallStarted("llm-proxy", GENERATE, "run-1", 1.0, 9.0),
    RunEnded("orchestrator", "acme", "free", "run-1", 1.0, 9.0, 2.0, "COMPLETED", "", {}, 0.0),
]


def ended(code: str, cause: str) -> CallEnded:
    return CallEnded("llm-proxy", GENERATE, "acme", "free", "run-1", 1.0, 9.0, 1.25, code, cause)


def of_call(code: str, **more: str) -> dict[str, str]:
    method = {"rpc.system.name": "grpc", "rpc.method": GENERATE.removeprefix("/")}
    return {**method, "mesh.tier": "free", "rpc.status_code": code, **more}


LANDINGS: list[tuple[Event, str, float, dict[str, str]]] = [
    (
        LimitHit("edge", "acme", "calls_per_second"),
        "mesh.limits.hit",
        1,
        {"mesh.hop": "edge", "mesh.limit": "calls_per_second"},
    ),
    (ended("OK", ""), "rpc.server.call.duration", 0.25, of_call("OK")),
    (
        ended("DEADLINE_EXCEEDED", "DEADLINE_SPENT"),
        "rpc.server.call.duration",
        0.25,
        of_call("DEADLINE_EXCEEDED", **{"error.type": "DEADLINE_SPENT"}),
    ),
    (
        CallRefused("llm-proxy", GENERATE, 1.0, 1.25, "RESOURCE_EXHAUSTED", "SHED"),
        "rpc.server.call.duration",
        0.25,
        of_call("RESOURCE_EXHAUSTED", **{"mesh.tier": "", "error.type": "SHED"}),
    ),
    (
        ended("NOT_FOUND", ""),
        "rpc.server.call.duration",
        0.25,
        of_call("NOT_FOUND", **{"error.type": "NOT_FOUND"}),
    ),
    (
        CallRefused("llm-proxy", GENERATE, 1.0, 1.25, "UNAVAILABLE", "DRAINING"),
        "rpc.server.call.duration",
        0.25,
        {**of_call("UNAVAILABLE", **{"error.type": "DRAINING"}), "mesh.tier": ""},
    ),
    (
        Wait("model demo", "acme", "free", "run-1", 0.5, WaitEnd.SHED),
        "mesh.admission.wait",
        0.5,
        {"mesh.bulkhead": "model demo", "mesh.tier": "free", "mesh.wait.end": "shed"},
    ),
    (LoopLagged("llm-proxy", *BY, 0.125, "here"), "mesh.loop.lag", 0.125, {"mesh.hop": "llm-proxy"}),
    (OrphanReported("llm-proxy", *BY, "task", 0.5), "mesh.orphans", 1, {"mesh.hop": "llm-proxy"}),
    (
        ConnectionClosed("edge", "10.0.0.7", "quiet"),
        "mesh.connections.closed",
        1,
        {"mesh.hop": "edge", "error.type": "quiet"},
    ),
    (MalformedRemaining("edge", GENERATE, "soon"), "mesh.deadline.malformed", 1, {"mesh.hop": "edge"}),
    (
        Retried("orchestrator", *BY, "tool look", 1, "HUNG", 0.1),
        "mesh.retries",
        1,
        {"mesh.upstream": "tool look", "error.type": "HUNG", "mesh.retry.refused": ""},
    ),
    (
        RetryRefused("orchestrator", *BY, "tool look", 2, "SHED", "time"),
        "mesh.retries",
        1,
        {"mesh.upstream": "tool look", "error.type": "SHED", "mesh.retry.refused": "time"},
    ),
    (
        FellBack("orchestrator", *BY, "model demo", "fast", "UPSTREAM_FAILED"),
        "mesh.fallbacks",
        1,
        {"mesh.upstream": "model demo", "error.type": "UPSTREAM_FAILED"},
    ),
    *(
        (
            CacheUsed("tool-runner", *BY, "look", hit, 0.1, problem),
            "mesh.cache.reads",
            1,
            {"mesh.tool": "look", "mesh.cache.found": found},
        )
        for hit, problem, found in [(True, "", "hit"), (False, "", "miss"), (False, "slow", "slow")]
    ),
    (CacheWritten("tool-runner", *BY, "look", 0.1, ""), "mesh.cache.writes", 1, {"mesh.tool": "look"}),
    (
        CacheWritten("tool-runner", *BY, "look", 0.1, "crowded"),
        "mesh.cache.writes",
        1,
        {"mesh.tool": "look", "error.type": "crowded"},
    ),
]
"""Each event, where it lands, as how much and with which labels."""


def measured(events: Sequence[Event], *, lost: bool = False) -> list[Any]:
    """The metrics that come of these events, and of log messages that were `lost`."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], resource=Resource.get_empty(), shutdown_on_exit=False)
    meter = provider.get_meter("deadlinemesh")
    sink = MetricsSink(meter)
    if lost:
        logs.count_lost(meter)
    for event in events:
        sink.record(event)
    found = reader.get_metrics_data()
    provider.shutdown()
    return (
        []
        if found is None
        else [one for resource in found.resource_metrics for one in resource.scope_metrics[0].metrics]
    )


@pytest.mark.parametrize(("event", "name", "amount", "labels"), LANDINGS)
def test_an_event_lands_in_its_instrument_with_its_labels(
    event: Event, name: str, amount: float, labels: dict[str, str]
) -> None:
    (metric,) = measured([event, event])
    (point,) = metric.data.data_points
    assert metric.name == name
    assert dict(point.attributes) == labels
    if metric.unit == "s":
        assert (point.count, point.sum) == (2, 2 * amount)
    else:
        assert (point.value, metric.data.is_monotonic) == (2, True)


def test_what_a_call_began_with_and_what_a_run_was_are_counted_nowhere() -> None:
    assert measured(UNCOUNTED) == []


def test_every_kind_of_event_has_its_place() -> None:
    told = [*UNCOUNTED, *(event for event, *_ in LANDINGS)]
    told += [PolicyInForce("edge", "0123456789ab"), PolicyRefused("edge", "unreadable", "p.yaml: is gone")]
    assert {type(event) for event in told} == set(Event.__args__)


def test_a_policys_hash_and_refusals_are_told() -> None:
    first, other = PolicyInForce("edge", "0123456789ab"), PolicyInForce("edge", "ffffffffffff")
    refused = PolicyRefused("edge", "ba9876543210", "p.yaml:3: tiers: is missing")
    cases: list[tuple[list[Event], dict[str, int]]] = [
        ([first], {"mesh.policy.hash": 0x0123456789AB, "mesh.policy.current": 1}),
        ([first, refused], {"mesh.policy.hash": 0x0123456789AB, "mesh.policy.current": 0, "mesh.policy.refused": 1}),
        ([first, refused, other], {"mesh.policy.hash": 2**48 - 1, "mesh.policy.current": 1, "mesh.policy.refused": 1}),
        ([PolicyInForce("edge", "")], {"mesh.policy.hash": 0, "mesh.policy.current": 1}),
    ]
    for events, told in cases:
        assert {one.name: one.data.data_points[0].value for one in measured(events)} == told


@pytest.mark.parametrize(
    ("event", "bounds"),
    [
        (ended("OK", ""), (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30, 60, 120, 300)),
        (
            Wait("runs", "acme", "free", "run-1", 0.0, WaitEnd.GRANTED),
            (0, 0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
        ),
        (LoopLagged("edge", *BY, 0.1, "here"), (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)),
    ],
)
def test_a_histogram_has_the_buckets_that_it_asked_for(event: Event, bounds: tuple[float, ...]) -> None:
    (metric,) = measured([event])
    assert metric.data.data_points[0].explicit_bounds == bounds


def test_the_manual_lists_every_instrument_with_its_unit_and_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LOST", Counter({"rate": 1}))
    policies: list[Event] = [PolicyInForce("edge", "0123456789ab"), PolicyRefused("edge", "0123456789ab", "why")]
    manual = Path(__file__).parents[3] / "docs" / "operating.md"
    rows = re.findall(
        r"^\| `([a-z.]+)` \| (?:histogram|counter|gauge)(?:, ([^ ]+))? \| ([^|]*) ?\|", manual.read_text(), re.MULTILINE
    )
    listed = {name: (unit, set(re.findall(r"`([^`]+)`", labels))) for name, unit, labels in rows}
    found = {
        metric.name: (
            metric.unit,
            {label for point in metric.data.data_points for label in point.attributes},
        )
        for metric in measured([*(event for event, *_ in LANDINGS), *policies], lost=True)
    }
    assert listed == found


# --- where they go ---


def last_line(path: Path) -> dict[str, Any]:
    """All metrics by name, as a file has them in the end, and under "" the resource that they are of."""
    (of_process,) = json.loads(path.read_text().splitlines()[-1])["resource_metrics"]
    return {one["name"]: one for one in of_process["scope_metrics"][0]["metrics"]} | {"": of_process["resource"]}


def test_off_is_nobody() -> None:
    assert metering_to("off", "hop-a") is None


def test_a_file_has_everything_in_one_line_and_keeps_what_it_had(tmp_path: Path) -> None:
    path = tmp_path / "metrics"
    path.write_text("what it had\n")
    provider = metering_to(f"file:{path}", "hop-a")
    assert provider is not None
    sink = MetricsSink(provider.get_meter("deadlinemesh"))
    for event, *_ in LANDINGS:
        sink.record(event)
    provider.shutdown()
    assert path.read_text().startswith("what it had\n{")
    found = last_line(path)
    assert found.keys() == {name for _, name, *_ in LANDINGS} | {""}
    of = found[""]["attributes"]
    assert (of["service.name"], of["service.namespace"]) == ("hop-a", "deadlinemesh")
    assert of["service.instance.id"], "two processes of a service would be taken for one"


@pytest.mark.parametrize("destination", ["", "file", "file:", "stdout", "prometheus:9090"])
def test_a_destination_that_is_none_is_named(destination: str) -> None:
    with pytest.raises(ValueError, match=f"^metrics: '{destination}' is not one of off, file:PATH, otlp"):
        metering_to(destination, "hop-a")


def test_a_file_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        metering_to(f"file:{tmp_path}/nowhere/metrics", "hop-a")


def test_without_the_exporter_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.metric_exporter", None)
    with pytest.raises(ValueError, match=r'metrics: otlp needs .*"deadline-mesh\[otlp\]"'):
        metering_to("otlp", "hop-a")


# --- as a service has them ---


def settings(**more: Any) -> HopSettings:
    return HopSettings(mesh_token="s3cret", listen="127.0.0.1:0", **more)


async def tell_last(event: Event, settings: HopSettings) -> None:
    """Put a service together, let an event be the last thing that it tells, and take it apart."""
    async with AsyncExitStack() as stack:
        hop = assemble("llm-proxy", settings, stack)
        hop.server.interceptor._telemetry.record(event)  # what a call would do, but nothing of it takes time


async def test_the_last_event_that_is_told_is_in_the_last_export(tmp_path: Path) -> None:
    await tell_last(ended("OK", ""), settings(metrics=f"file:{tmp_path / 'metrics'}"))
    (served,) = last_line(tmp_path / "metrics")["rpc.server.call.duration"]["data"]["data_points"]
    assert served["count"] == 1


async def test_metrics_are_made_only_where_somebody_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MetricsSink, "record", lambda *_: pytest.fail("an event became a metric"))
    await tell_last(ended("OK", ""), settings())
