"""A hop's server from its first breath to its last: start, health, reflection, drain, stop."""

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

__all__ = ["LIVENESS", "MeshServer", "ServerSettings"]

_LOG = logging.getLogger("deadlinemesh.transport")

LIVENESS = "liveness"
"""Health service name that answers as long as the event loop turns, draining or not."""

Registration = Callable[[grpc.aio.Server], None]
"""Adds one servicer to a server."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How a hop listens and leaves. Durations are in seconds."""

    listen: str
    """HOST:PORT; port 0 lets the system choose."""
    message_bytes: int = 4 * 1024 * 1024
    drain: float = 330.0
    """How long calls in flight may go on after a shutdown was asked for."""
    keepalive: float = KEEPALIVE
    connection_age: float = 0.0
    """How old a connection gets, give or take a tenth, before its client is asked for a new one; calls on it go on to their end.
    0: as old as it likes."""
    connection_grace: float = 360.0
    """How long after that an old connection may stay: more than the longest budget, as its calls are cut then."""
    connections: int = 4096
    """The most connections in all; more are refused."""
    connection_limits: ConnectionLimits = field(default_factory=ConnectionLimits)
    """What those of one address, and of strangers, may cost."""
    streams: int = 2048
    """Calls at a time on one connection; more wait at the client."""

    def __post_init__(self) -> None:
        host, _, port = self.listen.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"listen address {self.listen!r} is not HOST:PORT, such as 0.0.0.0:50051")


class MeshServer:
    """Serves `services`, full gRPC names with what registers them, behind `interceptor`."""

    def __init__(
        self, settings: ServerSettings, interceptor: DeadlineInterceptor, services: Sequence[tuple[str, Registration]]
    ) -> None:
        self.interceptor = interceptor
        self.port = 0
        """The port that is listened on, once started."""
        self._settings = settings
        self._services = tuple(services)
        self._health = Health()
        self._guard: asyncio.Task[None] | None = None
        self._calling: asyncio.Task[None] | None = None
        self._own_channel: grpc.aio.Channel | None = None
        self._server: grpc.aio.Server | None = None
        self._lag: LagWatch | None = None

    async def start(self) -> int:
        """Listen; returns the port. Raises OSError naming the address when it cannot be had."""
        # Here, because clients import this package too, and only servers need and have reflection.
        from grpc_reflection.v1alpha import reflection

        own_tasks(asyncio.get_running_loop())  # before the first call's task is made
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
                # Else the third ping of a silent connection is never sent, and a broken one never found out.
                ("grpc.http2.max_pings_without_data", 0),
                # What really ends a silent connection: by its own default a minute, whatever the keepalive timeout says.
                ("grpc.http2.ping_timeout_ms", milliseconds),
                ("grpc.http2.min_ping_interval_without_data_ms", min(milliseconds, 10_000)),
                # Pings more often than that, in which time nothing else was sent, before the connection is closed.
                ("grpc.http2.max_ping_strikes", _PING_STRIKES),
                ("grpc.max_concurrent_streams", settings.streams),
                # Of more calls that wait to be taken up the core drops some, whoever's they are.
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
            self.port = server.add_insecure_port(settings.listen)
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
        """Take nothing new, let what runs go on for the drain time at most, then end it and stop listening.

        Orphans are not waited for: their time is over, and they have been reported.
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
        """Have grpc.aio take another call: it holds on to the one that it took last, though that was ended."""
        if self._own_channel is None:
            host = self._settings.listen.rpartition(":")[0]
            target = f"{_LOOPBACK.get(host, host)}:{self.port}"
            self._own_channel = open_channel(target, message_bytes=self._settings.message_bytes)
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
