"""Servers and channels take credentials. gRPC's local ones need no certificates."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from tests.support.rpc import SERVICE, TOKEN, methods, register

from deadlinemesh.deadline import SYSTEM_CLOCK, DeadlineContext, entered
from deadlinemesh.transport import (
    DeadlineInterceptor,
    MeshGate,
    MeshServer,
    ServerCredentials,
    ServerSettings,
    mesh_channel,
)

MESSAGE_BYTES = 1024 * 1024


async def call(port: int, credentials: grpc.ChannelCredentials | None) -> Any:
    now = SYSTEM_CLOCK.monotonic()
    context = DeadlineContext("acme", now + 20.0, "free", "1" * 32, "run_1", now)
    options: dict[str, Any] = {"mesh_token": TOKEN, "message_bytes": MESSAGE_BYTES, "credentials": credentials}
    channel = mesh_channel(f"127.0.0.1:{port}", **options)
    try:
        with entered(context):
            return await channel.unary_unary(f"/{SERVICE}/unary_unary")(b"hello")
    finally:
        await channel.close()


async def test_channel_needs_the_servers_credentials() -> None:
    local = ServerCredentials(grpc.local_server_credentials(), grpc.local_channel_credentials())
    interceptor = DeadlineInterceptor("hop-a", MeshGate("hop-a", TOKEN))
    served = [(SERVICE, lambda server: register(server, methods()))]
    server = MeshServer(ServerSettings("127.0.0.1:0"), interceptor, served, local)
    port = await server.start()
    try:
        assert await call(port, grpc.local_channel_credentials())
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(port, grpc.ssl_channel_credentials())
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        await server._call_itself()
        assert server._own_channel is not None
        assert server._own_channel.get_state() is grpc.ChannelConnectivity.READY
    finally:
        await server.stop()
