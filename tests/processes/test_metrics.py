"""What a service measures reaches those who read it: a file, or a collector over OTLP."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from tests.chaos.processes import Service
from tests.support.up import GUARD

from deadlinemesh.v1 import common_pb2, llm_proxy_pb2, llm_proxy_pb2_grpc

pytestmark = pytest.mark.processes

SERVICE = "llm-proxy"
METHOD = "deadlinemesh.v1.LlmProxyService/Generate"
MEASURED = {"rpc.server.call.duration", "mesh.admission.wait"}
"""What one call gives rise to."""


@asynccontextmanager
async def serving(folder: Path, **variables: str) -> AsyncIterator[Service]:
    """`dmesh serve` of one service, with no settings but these. It must end with 0 when it is told to."""
    foreign = ("DMESH_", "OTEL_")
    own = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    service = Service(SERVICE, folder, own | {"DMESH_LISTEN": "127.0.0.1:0", "DMESH_MESH_TOKEN": "t", **variables})
    await service.start()
    try:
        yield service
    finally:
        assert await service.end() == 0, service.log


async def call(service: Service) -> None:
    """Have it serve one call, to its end."""
    hello = common_pb2.Message(role=common_pb2.ROLE_USER, content="hello")
    request = llm_proxy_pb2.GenerateRequest(model="fast", messages=[hello])
    identity = ("mesh-identity", "token=t;tenant=acme;tier=enterprise;run=by-hand;trace=")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{service.life.port}") as channel:
        stub = llm_proxy_pb2_grpc.LlmProxyServiceStub(channel)
        answered = [one async for one in stub.Generate(request, timeout=GUARD, metadata=(identity,))]
    assert answered[-1].HasField("finished")


async def test_a_file_has_what_a_service_measured_once_it_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "metrics"
    async with serving(tmp_path, DMESH_METRICS=f"file:{path}") as service:
        await call(service)
    (of_process,) = json.loads(path.read_text().splitlines()[-1])["resource_metrics"]
    assert of_process["resource"]["attributes"]["service.name"] == SERVICE
    found = {one["name"]: one["data"]["data_points"] for one in of_process["scope_metrics"][0]["metrics"]}
    (served,), (waited,) = found["rpc.server.call.duration"], found["mesh.admission.wait"]
    assert (served["count"], served["attributes"]["rpc.method"]) == (1, METHOD)
    assert served["explicit_bounds"][-5:] == [15, 30, 60, 120, 300]
    assert len(served["bucket_counts"]) == len(served["explicit_bounds"]) + 1
    assert (waited["count"], waited["attributes"]) == (
        1,
        {"mesh.bulkhead": "model fast", "mesh.tier": "enterprise", "mesh.wait.end": "granted"},
    )


class Collector:
    """An OTLP collector: keeps what it is sent, and the headers it came with."""

    def __init__(self) -> None:
        self.headers: dict[str, Any] = {}
        self.resources: dict[str, dict[str, str]] = {}
        """The attributes of whom the last metrics, and the last spans, are from."""
        self.metrics: dict[str, Any] = {}
        """The last state of each."""
        self.spans: list[str] = []
        self._came = asyncio.Condition()

    async def sent(self, *, metrics: set[str], spans: int) -> None:
        """Return when these metrics, and so many spans, have come."""
        async with self._came, asyncio.timeout(GUARD):
            await self._came.wait_for(lambda: metrics <= self.metrics.keys() and len(self.spans) >= spans)

    async def keep_metrics(self, request: Any, context: Any) -> Any:
        async with self._came:
            self.headers = dict(context.invocation_metadata())
            for of_process in request.resource_metrics:
                self.resources["metrics"] = _texts(of_process.resource.attributes)
                self.metrics |= {one.name: one for scope in of_process.scope_metrics for one in scope.metrics}
            self._came.notify_all()
        return metrics_service_pb2.ExportMetricsServiceResponse()

    async def keep_spans(self, request: Any, context: Any) -> Any:
        async with self._came:
            for of_process in request.resource_spans:
                self.resources["spans"] = _texts(of_process.resource.attributes)
                self.spans += [one.name for scope in of_process.scope_spans for one in scope.spans]
            self._came.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()


def _texts(attributes: Any) -> dict[str, str]:
    return {one.key: one.value.string_value for one in attributes}


@asynccontextmanager
async def collecting() -> AsyncIterator[tuple[Collector, str]]:
    """A collector and its address."""
    collector = Collector()
    metrics: Any = metrics_service_pb2_grpc.MetricsServiceServicer()
    metrics.Export = collector.keep_metrics
    spans: Any = trace_service_pb2_grpc.TraceServiceServicer()
    spans.Export = collector.keep_spans
    server = grpc.aio.server()
    untyped: Any = metrics_service_pb2_grpc
    untyped.add_MetricsServiceServicer_to_server(metrics, server)
    untyped = trace_service_pb2_grpc
    untyped.add_TraceServiceServicer_to_server(spans, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield collector, f"http://127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def test_a_collector_is_sent_metrics_and_spans_while_a_service_runs(tmp_path: Path) -> None:
    async with collecting() as (collector, address):
        otlp = {"OTEL_EXPORTER_OTLP_ENDPOINT": address, "OTEL_EXPORTER_OTLP_HEADERS": "x-key=k"}
        often = {"OTEL_METRIC_EXPORT_INTERVAL": "50", "OTEL_BSP_SCHEDULE_DELAY": "50"}
        async with serving(tmp_path, DMESH_METRICS="otlp", DMESH_TRACES="otlp", **otlp, **often) as service:
            await call(service)
            await collector.sent(metrics=MEASURED, spans=1)
    assert collector.headers["x-key"] == "k"
    assert collector.resources["metrics"]["service.name"] == SERVICE
    assert collector.resources["metrics"] == collector.resources["spans"]
    duration = collector.metrics["rpc.server.call.duration"]
    (served,) = duration.histogram.data_points
    assert (duration.unit, served.count, _texts(served.attributes)["rpc.method"]) == ("s", 1, METHOD)
    assert list(served.explicit_bounds)[-5:] == [15, 30, 60, 120, 300]


async def test_a_collector_is_sent_what_is_left_when_a_service_ends(tmp_path: Path) -> None:
    async with collecting() as (collector, address):
        seldom = {"OTEL_EXPORTER_OTLP_ENDPOINT": address, "OTEL_METRIC_EXPORT_INTERVAL": str(int(GUARD * 1000))}
        async with serving(tmp_path, DMESH_METRICS="otlp", **seldom) as service:
            await call(service)
            assert collector.metrics == {}
        await collector.sent(metrics=MEASURED, spans=0)


async def test_without_its_collector_a_service_serves_and_ends_as_ever(tmp_path: Path) -> None:
    with socket.socket() as taken:  # and nobody listens
        taken.bind(("127.0.0.1", 0))
        nobody = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{taken.getsockname()[1]}",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "0.5",  # less than the pause before a second attempt: none is made
        }
        async with serving(tmp_path, DMESH_METRICS="otlp", **nobody) as service:
            await call(service)
        assert "Failed to export metrics" in service.log
