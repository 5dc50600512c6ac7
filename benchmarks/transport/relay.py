"""A process with two servers, one behind the mesh's transport and one of plain grpc.aio, with the same methods.

`Echo` and `Stream` answer; `Relay` passes the call on to the next process and adds its own deadline to what comes back.
A message is JSON in bytes, so that no generated code is measured. The process is set up as a service's is, for both alike, or, to
serve plain grpc.aio alone, as Python and asyncio set it up.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from benchmarks.process import run_as_service, stay_on
from deadlinemesh.deadline import current
from deadlinemesh.hosting.interpreter import spare_the_event_loop
from deadlinemesh.transport import DeadlineInterceptor, MeshChannel, MeshGate, MeshServer, ServerSettings, mesh_channel

__all__ = ["channel_to", "traced"]

TOKEN = "benchmark"
MESSAGE_BYTES = 4 * 1024 * 1024
SERVICE = "benchmark.Relay"


class Discarded(SpanExporter):
    """Takes spans through the whole pipeline and drops them at its end."""

    def export(self, spans: Any) -> SpanExportResult:
        return SpanExportResult.SUCCESS


def traced() -> Any:
    """A tracer whose spans are made, batched and dropped."""
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Discarded()))
    return provider.get_tracer("benchmark")


async def _echo(request: bytes, context: Any) -> bytes:
    return request


async def _stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
    for _ in range(int(request)):
        yield b"x" * 50


class _MeshRelay:
    def __init__(self, following: grpc.aio.Channel | None) -> None:
        self._next: Any = None if following is None else following.unary_unary(f"/{SERVICE}/Relay")

    async def __call__(self, request: bytes, context: Any) -> bytes:
        below = [] if self._next is None else json.loads(await self._next(request))
        return json.dumps([current().absolute_deadline, *below]).encode()


class _PlainRelay:
    def __init__(self, following: grpc.aio.Channel | None) -> None:
        self._next: Any = None if following is None else following.unary_unary(f"/{SERVICE}/Relay")

    async def __call__(self, request: bytes, context: Any) -> bytes:
        deadline = time.monotonic() + context.time_remaining()
        below = [] if self._next is None else json.loads(await self._next(request, timeout=context.time_remaining()))
        return json.dumps([deadline, *below]).encode()


def _registration(relay: Any) -> Callable[[grpc.aio.Server], None]:
    async def forward(request: bytes, context: Any) -> bytes:
        answer: bytes = await relay(request, context)
        return answer

    handlers: dict[str, Any] = {
        "Echo": grpc.unary_unary_rpc_method_handler(_echo),
        "Stream": grpc.unary_stream_rpc_method_handler(_stream),
        "Relay": grpc.unary_unary_rpc_method_handler(forward),
    }
    generic = grpc.method_handlers_generic_handler(SERVICE, handlers)
    return lambda server: server.add_generic_rpc_handlers((generic,))


def channel_to(port: int, tracer: Any = None) -> MeshChannel:
    """The mesh's own channel, as its services open it."""
    return mesh_channel(f"127.0.0.1:{port}", mesh_token=TOKEN, message_bytes=MESSAGE_BYTES, tracer=tracer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--next-plain", type=int, help="port of the next plain relay")
    parser.add_argument("--next-mesh", type=int, help="port of the next mesh relay")
    parser.add_argument("--traced", action="store_true", help="trace the mesh's side")
    parser.add_argument("--plain", action="store_true", help="set nothing up as a service does")
    parser.add_argument("--core", type=int, help="the processor core to stay on")
    options = parser.parse_args()
    if options.core is not None:
        stay_on(options.core)
    (asyncio.run if options.plain else run_as_service)(_serve(options))


async def _serve(options: argparse.Namespace) -> None:
    tracer = traced() if options.traced else None
    plain = mesh = None
    if options.next_plain:
        plain = grpc.aio.insecure_channel(f"127.0.0.1:{options.next_plain}")
        mesh = channel_to(options.next_mesh, tracer)
    plain_server = grpc.aio.server()
    _registration(_PlainRelay(plain))(plain_server)
    plain_port = plain_server.add_insecure_port("127.0.0.1:0")
    await plain_server.start()
    door = DeadlineInterceptor("relay", MeshGate("relay", TOKEN), tracer=tracer)
    mesh_server = MeshServer(
        ServerSettings("127.0.0.1:0", MESSAGE_BYTES), door, [(SERVICE, _registration(_MeshRelay(mesh)))]
    )
    mesh_port = await mesh_server.start()
    if not options.plain:
        spare_the_event_loop()
    print(json.dumps({"plain": plain_port, "mesh": mesh_port}), flush=True)
    await plain_server.wait_for_termination()


if __name__ == "__main__":
    main()
