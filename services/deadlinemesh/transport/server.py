"""A hop's server, from start to stop: health, reflection, drain."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from deadlinemesh.deadline import SYSTEM_CLOCK
from deadlinemesh.deadline.lowlevel import LagWatch, outside_any_scope, own_tasks, own_threads
from deadlinemesh.errors import Cause
from deadlinemesh.transport.channels import KEEPALIVE, open_channel
from deadlinemesh.transport.connections import ConnectionLimits, ServerConnections
from deadlinemesh.transport.health import Health
from deadlinemesh.transport.inbound import DeadlineInterceptor
from deadlinemesh.transport.stragglers import LAST_MESSAGE_S

__all__ = ["LIVENESS", "MeshServer", "ServerCredentials", "ServerSettings"]

_LOG = logging.getLogger("deadlinemesh.transport")

LIVENESS = "liveness"
"""Name of a health service that serves as long as the event loop runs, draining or not."""

Registration = Callable[[grpc.aio.Server], None]
"""Adds one servicer to a server."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Settings of a hop's server. Durations are in seconds."""

    listen: str
    """HOST:PORT. With port 0 the system chooses the port."""
    message_bytes: int = 4 * 1024 * 1024
    drain: float = 330.0
    """Seconds that calls in flight may go on after a shutdown request."""
    keepalive: float = KEEPALIVE
    connection_age: float = 0.0
    """Seconds, give or take a tenth, after which a connection's client is asked to open a new one.
    Calls on the old one go on. 0: no limit.
    """
    connection_grace: float = 360.0
    """Seconds that an old connection may stay after that. Must exceed the longest budget, because
    the remaining calls are cut then.
    """
    connections: int = 4096
    """Connections in all; more are refused."""
    connection_limits: ConnectionLimits = field(default_factory=ConnectionLimits)
    """Limits on the connections of one address and on unknown connections."""
    streams: int = 2048
    """Calls at a time on one connection; more wait at the client."""

    def __post_init__(self) -> None:
        host, _, port = self.listen.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"listen address {self.listen!r} is not HOST:PORT, such as 0.0.0.0:50051")


@dataclass(frozen=True, slots=True)
class ServerCredentials:
    """The credentials of a server, and those with which it calls itself."""

    server: grpc.ServerCredentials
    own_channel: grpc.ChannelCredentials


class MeshServer:
    """Serves `services` behind `interceptor`. Each service is its full gRPC name and a function
    that registers it.

        def register(server):
            search_pb2_grpc.add_SearchServiceServicer_to_server(SearchServicer(), server)

        server = MeshServer(ServerSettings("0.0.0.0:50051"), interceptor, [(NAME, register)])
        await server.start()
        await server.serve_until_signalled()
    """

    def __init__(
        self,
        settings: ServerSettings,
        interceptor: DeadlineInterceptor,
        services: Sequence[tuple[str, Registration]],
        credentials: ServerCredentials | None = None,
    ) -> None:
        """Without `credentials` connections are plaintext."""
        self.interceptor = interceptor
        self._credentials = credentials
        self.port = 0
        """The port in use, once started."""
        self._settings = settings
        self._services = tuple(services)
        self._health = Health()
        self._guard: asyncio.Task[None] | None = None
        self._calling: asyncio.Task[None] | None = None
        self._own_channel: grpc.aio.Channel | None = None
        self._server: grpc.aio.Server | None = None
        self._lag: LagWatch | None = None

    async def start(self) -> int:
        """Listen, and return the port. Raises OSError with the address if it cannot be used."""
        # Imported here: clients import this package too, and only servers need and have reflection.
        from grpc_reflection.v1alpha import reflection

        own_tasks(asyncio.get_running_loop())  # before the first call's task exists
        own_threads(asyncio.get_running_loop())
        settings = self._settings
        milliseconds = int(settings.keepalive * 1000)
        self._server = server = grpc.aio.server(
            interceptors=[self.interceptor],
            options=[
                ("grpc.max_receive_message_length", settings.message_bytes),
                ("grpc.so_reuseport", 0),
                ("grpc.keepalive_time_ms", milliseconds),
                ("grpc.keepalive_timeout_ms", milliseconds),
                ("grpc.keepalive_permit_without_calls", 1),
                # Without this, the third ping of a silent connection is never sent, and a broken
                # connection is never detected.
                ("grpc.http2.max_pings_without_data", 0),
                # This option is the one that ends a silent connection. Its default is a minute,
                # independent of the keepalive timeout.
                ("grpc.http2.ping_timeout_ms", milliseconds),
                ("grpc.http2.min_ping_interval_without_data_ms", min(milliseconds, 10_000)),
                # The number of more frequent pings, with nothing else sent in between, before the
                # connection is closed.
                ("grpc.http2.max_ping_strikes", _PING_STRIKES),
                ("grpc.max_concurrent_streams", settings.streams),
                # If more calls wait to be taken up, the core drops some of them, of any caller.
                ("grpc.server.max_pending_requests", _PENDING_CALLS),
                ("grpc.server.max_pending_requests_hard_limit", 2 * _PENDING_CALLS),
                ("grpc.max_allowed_incoming_connections", settings.connections),
                ("grpc.server_handshake_timeout_ms", int(settings.connection_limits.quiet_seconds * 1000)),
                ("grpc.http2.settings_timeout", int(settings.connection_limits.quiet_seconds * 1000)),
                *_aging(settings),
            ],
        )
        for _, register in self._services:
            register(server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (*(name for name, _ in self._services), health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        try:
            if self._credentials is None:
                self.port = server.add_insecure_port(settings.listen)
            else:
                self.port = server.add_secure_port(settings.listen, self._credentials.server)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {settings.listen}: is it taken by another process?") from error
        await server.start()
        self._lag = self.interceptor.watch_lag()
        self._guard = asyncio.get_running_loop().create_task(
            ServerConnections(
                self.port, settings.connection_limits, self.interceptor.peers, SYSTEM_CLOCK, self.interceptor.closed
            ).guard()
        )
        self.interceptor.stragglers.on_ended = self._call_itself_soon
        self._tell_health(serving=True)
        self._health.tell(LIVENESS, True)
        return self.port

    async def drain(self) -> None:
        """Refuse new calls, let running calls go on for at most the drain time, then end them and
        stop listening.

        Does not wait for orphans: their time is over, and they have been reported.
        """
        assert self._server is not None
        self.interceptor.drain()
        self._tell_health(serving=False)
        scopes = self.interceptor.scopes
        if len(scopes):
            _LOG.info("%s drains %d calls", self.interceptor.hop, len(scopes))
        try:
            async with asyncio.timeout(self._settings.drain):
                await scopes.drained()
        except TimeoutError:
            _LOG.warning("%s ends %d calls that outlived the drain", self.interceptor.hop, len(scopes))
        await self.stop()

    async def stop(self) -> None:
        """End every call now, with the cause DRAINING, and stop listening."""
        assert self._server is not None
        self.interceptor.drain()
        self.interceptor.scopes.stop_all(Cause.DRAINING)
        # grpc.aio's own grace does not wait for a status that is being sent when it begins.
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS):
                await self.interceptor.answered()
                await self.interceptor.stragglers.sent()
        self.interceptor.stragglers.end_all()
        await self._server.stop(grace=_LAST_CALLS)
        await self._server.wait_for_termination()
        for task in (self._guard, self._calling):
            if task is not None:
                task.cancel()
        if self._own_channel is not None:
            await self._own_channel.close()
        if self._lag is not None:
            self._lag.stop()
        self.interceptor.flush()

    async def serve_until_signalled(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain. A second signal ends the drain at once."""
        loop = asyncio.get_running_loop()
        signalled, hurried = asyncio.Event(), asyncio.Event()

        def on_signal() -> None:
            (hurried if signalled.is_set() else signalled).set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        await signalled.wait()
        draining = asyncio.ensure_future(self.drain())
        hurry = asyncio.ensure_future(hurried.wait())
        await asyncio.wait({draining, hurry}, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if draining.done():
            draining.result()
        else:
            draining.cancel()
            await self.stop()

    def _call_itself_soon(self) -> None:
        if self._calling is None or self._calling.done():
            calling = asyncio.get_running_loop().create_task(self._call_itself(), context=outside_any_scope())
            self._calling = calling

    async def _call_itself(self) -> None:
        """Have grpc.aio take another call. It keeps a reference to the last call that it took, even
        to an ended one.
        """
        if self._own_channel is None:
            host = self._settings.listen.rpartition(":")[0]
            target = f"{_LOOPBACK.get(host, host)}:{self.port}"
            credentials = None if self._credentials is None else self._credentials.own_channel
            self._own_channel = open_channel(
                target, message_bytes=self._settings.message_bytes, credentials=credentials
            )
        stub: Any = health_pb2_grpc.HealthStub(self._own_channel)
        with suppress(grpc.aio.AioRpcError):
            await stub.Check(health_pb2.HealthCheckRequest(), timeout=LAST_MESSAGE_S)

    def _tell_health(self, *, serving: bool) -> None:
        for name in ("", *(name for name, _ in self._services)):
            self._health.tell(name, serving)


def _aging(settings: ServerSettings) -> list[tuple[str, int]]:
    if not settings.connection_age:
        return []
    return [
        ("grpc.max_connection_age_ms", max(1, int(settings.connection_age * 1000))),
        ("grpc.max_connection_age_grace_ms", int(settings.connection_grace * 1000)),
    ]


_PING_STRIKES = 64
_PENDING_CALLS = 16_384
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "::": "[::1]"}

_LAST_WORDS = 1.0
"""Seconds for the statuses of ended calls to leave before connections close."""

_LAST_CALLS = 0.1
"""Seconds for the calls themselves to end after that."""
