"""Channels to other hops, with the options that deadlines need."""

from __future__ import annotations

import json
from typing import Any

import grpc
from opentelemetry import trace

from deadlinemesh.transport.outbound import MeshChannel

__all__ = ["KEEPALIVE", "mesh_channel", "open_channel"]

KEEPALIVE = 20.0
"""Seconds of silence before a keepalive ping. After the same time without an answer the connection
is closed.
"""


def open_channel(
    target: str,
    *,
    message_bytes: int,
    keepalive: float = KEEPALIVE,
    credentials: grpc.ChannelCredentials | None = None,
    healthy: str = "",
) -> grpc.aio.Channel:
    """Open a channel to `target` without stamping calls. It uses TLS if `credentials` are given,
    and never a proxy.

    Retries have one owner, not the channel. Its service config names no retry policy, so it resends
    only calls that no server has seen, for example when a connection ends at that moment. The
    config sets no timeouts either, because the channel's own timeouts fire up to a second early.

    `healthy` is the full name of a service that each peer must report as serving, by gRPC's health
    service. A draining peer is then passed over. Otherwise its connection would be used until it
    ends, and each call on it would be refused.

        channel = open_channel("localhost:50051", message_bytes=4 * 1024 * 1024)
        stub = health_pb2_grpc.HealthStub(channel)
    """
    config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if healthy:
        config["healthCheckConfig"] = {"serviceName": healthy}
    options = [
        # Without this the C core sends every call to the proxy named by `http_proxy`, even calls to
        # this machine.
        ("grpc.enable_http_proxy", 0),
        ("grpc.enable_retries", 1),  # without it, unseen calls are not resent either
        ("grpc.service_config", json.dumps(config)),
        ("grpc.max_receive_message_length", message_bytes),
        ("grpc.keepalive_time_ms", int(keepalive * 1000)),
        ("grpc.keepalive_timeout_ms", int(keepalive * 1000)),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.ping_timeout_ms", int(keepalive * 1000)),
        # A restarted peer is found again within a second. The library's default is two minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]
    if credentials is not None:
        return grpc.aio.secure_channel(target, credentials, options=options)
    return grpc.aio.insecure_channel(target, options=options)


def mesh_channel(
    target: str,
    *,
    mesh_token: str,
    message_bytes: int,
    keepalive: float = KEEPALIVE,
    tracer: trace.Tracer | None = None,
    healthy: str = "",
    credentials: grpc.ChannelCredentials | None = None,
) -> MeshChannel:
    """Open a channel to an inner hop of the mesh. Each call carries the current deadline.

    `healthy` and `credentials` are as in `open_channel`.

        channel = mesh_channel("tool-runner:50053", mesh_token=token, message_bytes=4 * 1024 * 1024)
        stub = ToolRunnerServiceStub(channel)
    """
    channel = open_channel(
        target, message_bytes=message_bytes, keepalive=keepalive, healthy=healthy, credentials=credentials
    )
    return MeshChannel(channel, mesh_token, tracer)
