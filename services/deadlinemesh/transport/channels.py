"""Channels to other hops, opened with the options that a deadline needs."""

from __future__ import annotations

import json
from typing import Any

import grpc
from opentelemetry import trace

from deadlinemesh.transport.outbound import MeshChannel

__all__ = ["KEEPALIVE", "mesh_channel", "open_channel"]

KEEPALIVE = 20.0
"""Seconds of silence after which a peer is asked for a sign of life, and as many again until it is given up."""


def open_channel(
    target: str,
    *,
    message_bytes: int,
    keepalive: float = KEEPALIVE,
    credentials: grpc.ChannelCredentials | None = None,
    healthy: str = "",
) -> grpc.aio.Channel:
    """A plain channel to `target`, over TLS when `credentials` are given. It never uses a proxy.

    Retries have one owner and it is not the channel: a service config that names none leaves it only those calls to send again that
    no server has seen, as where a connection ends just then. Its own timeouts fire up to a second early, so it has none.

    `healthy` is the full name of a service that each peer must say it serves, by gRPC's health service. One that drains is then
    passed over; else its connection would be used until it ends, and each call on it refused.
    """
    config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if healthy:
        config["healthCheckConfig"] = {"serviceName": healthy}
    options = [
        # The C core would else send every call to the proxy that `http_proxy` names, those to this machine too.
        ("grpc.enable_http_proxy", 0),
        ("grpc.enable_retries", 1),  # or it does not do even that
        ("grpc.service_config", json.dumps(config)),
        ("grpc.max_receive_message_length", message_bytes),
        ("grpc.keepalive_time_ms", int(keepalive * 1000)),
        ("grpc.keepalive_timeout_ms", int(keepalive * 1000)),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.ping_timeout_ms", int(keepalive * 1000)),
        # A restarted peer is found again within a second, not after the library's two minutes.
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
) -> MeshChannel:
    """A channel to an inner hop of the mesh; `healthy` as in `open_channel`."""
    channel = open_channel(target, message_bytes=message_bytes, keepalive=keepalive, healthy=healthy)
    return MeshChannel(channel, mesh_token, tracer)
