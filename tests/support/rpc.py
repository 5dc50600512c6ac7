"""A service of bytes with one method for each arity, a way to call each, and a real server to call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from opentelemetry import trace

from deadlinemesh.deadline import SYSTEM_CLOCK, DeadlineContext, Scopes
from deadlinemesh.telemetry import Event, Telemetry
from deadlinemesh.transport import DeadlineInterceptor, Gate, MeshChannel, MeshGate, MeshServer, ServerSettings
from deadlinemesh.transport.channels import open_channel

T = TypeVar("T")
Act = Callable[[bytes, Any], Awaitable[bytes]]

SERVICE = "test.v1.Service"
TOKEN = "mesh-secret"
ARITIES = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
STREAMING = ("unary_stream", "stream_stream")
REQUEST = b"ask"

GENEROUS = 20.0
"""Seconds after which something that must happen is taken not to. Nothing that passes waits for it."""


def within_bounds(waited: Awaitable[T]) -> Awaitable[T]:
    """`waited`, or a TimeoutError where the mesh is broken."""
    return asyncio.wait_for(waited, GENEROUS)


def error_info(error: grpc.aio.AioRpcError) -> dict[str, str]:
    """The reason in the details of a status, and their metadata."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # it has all that is read of a call
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert any(one.Unpack(info) for one in status.details)
    return {"reason": info.reason, **info.metadata}


def with_seconds(seconds: float, *, tenant_id: str = "acme") -> DeadlineContext:
    """A context on the system's clock."""
    at = SYSTEM_CLOCK.monotonic()
    return DeadlineContext(tenant_id, at + seconds, "free", "4bf92f3577b34da6a3ce929d0e0e4736", "run-1", at)


async def in_a_scope(seconds: float, work: Callable[[], Awaitable[T]]) -> T:
    """Do `work` as a handler of another hop would: in a scope that ends all of it."""

    async def coroutine() -> T:
        return await work()

    return await Scopes("caller").open(with_seconds(seconds)).run(coroutine())


class Facts:
    """A telemetry sink whose events can be waited for."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._new = asyncio.Event()

    def record(self, event: Event) -> None:
        self.events.append(event)
        self._new.set()

    def seen(self, kind: type[T]) -> list[T]:
        return [event for event in self.events if isinstance(event, kind)]

    async def see(self, kind: type[T], count: int = 1) -> T:
        """The latest of `count` events of this kind, once there are so many."""
        while len(self.seen(kind)) < count:
            self._new.clear()
            await within_bounds(self._new.wait())
        return self.seen(kind)[count - 1]


class Asleep:
    """A handler's work that never ends by itself, and tells when it begins and ends."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.ended = asyncio.Event()

    async def __call__(self, request: bytes, context: Any) -> bytes:
        self.began.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.ended.set()
        return b""


async def echo(request: bytes, context: Any) -> bytes:
    return b"re: " + request


def methods(act: Act = echo) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    """Four methods, named after their arities, that do `act`. Streams of responses begin with `first`."""

    async def unary_unary(request: bytes, context: Any) -> bytes:
        return await act(request, context)

    async def unary_stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"first"
        yield await act(request, context)

    async def stream_unary(requests: AsyncIterator[bytes], context: Any) -> bytes:
        return await act(b"".join([request async for request in requests]), context)

    async def stream_stream(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        yield b"first"
        yield await act(b"".join([request async for request in requests]), context)

    behaviours: tuple[Callable[[Any, Any], Any], ...] = (unary_unary, unary_stream, stream_unary, stream_stream)
    return {arity: handler(arity, behaviour) for arity, behaviour in zip(ARITIES, behaviours, strict=True)}


def handler(arity: str, behaviour: Callable[[Any, Any], Any]) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler of bytes."""
    made: grpc.RpcMethodHandler[Any, Any] = getattr(grpc, f"{arity}_rpc_method_handler")(behaviour)
    return made


def begin(
    channel: grpc.aio.Channel,
    arity: str,
    method: str = "",
    *,
    requests: Sequence[bytes] = (b"a", b"sk"),
    **options: Any,
) -> Any:
    """Begin a call, with `requests` where it takes a stream of them.

    A call that will be refused at once had better send none: grpc.aio tells INTERNAL where the refusal meets a message.
    """
    invoke = getattr(channel, arity)(f"/{SERVICE}/{method or arity}", _same, _same)
    return invoke(_stream(requests) if arity.startswith("stream") else REQUEST, **options)


async def finish(call: Any, arity: str) -> list[bytes]:
    """All responses of a call."""
    if arity in STREAMING:
        return [response async for response in call]
    return [await call]


async def responses(channel: grpc.aio.Channel, arity: str, method: str = "", **options: Any) -> list[bytes]:
    """Call, and wait for the end."""
    return await within_bounds(finish(begin(channel, arity, method, **options), arity))


def expected(arity: str) -> list[bytes]:
    """What `echo` answers."""
    return [b"first", b"re: ask"] if arity in STREAMING else [b"re: ask"]


def _same(message: bytes) -> bytes:
    return message


async def _stream(requests: Sequence[bytes]) -> AsyncIterator[bytes]:
    for request in requests:
        yield request


@dataclass(frozen=True)
class Served:
    """A running hop, and two channels to it."""

    server: MeshServer
    interceptor: DeadlineInterceptor
    facts: Facts
    mesh: MeshChannel
    raw: grpc.aio.Channel


@asynccontextmanager
async def serving(
    handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]],
    *,
    tracer: trace.Tracer | None = None,
    message_bytes: int = 4 * 1024 * 1024,
    drain: float = GENEROUS,
    connection_age: float = 0.0,
    request_seconds: float = GENEROUS,
    watches: int = 100,
    gate: Gate | None = None,
) -> AsyncIterator[Served]:
    """Serve `handlers` as SERVICE on a free port, in this process."""
    facts = Facts()
    interceptor = DeadlineInterceptor(
        "hop-a",
        gate or MeshGate("hop-a", TOKEN),
        telemetry=Telemetry([facts]),
        tracer=tracer,
        request_seconds=request_seconds,
        watches=watches,
    )
    settings = ServerSettings("127.0.0.1:0", message_bytes=message_bytes, drain=drain, connection_age=connection_age)
    server = MeshServer(settings, interceptor, [(SERVICE, lambda server: register(server, handlers))])
    target = f"127.0.0.1:{await server.start()}"
    async with AsyncExitStack() as stack:
        stack.push_async_callback(server.stop)
        raw = await stack.enter_async_context(open_channel(target, message_bytes=message_bytes))
        await within_bounds(raw.channel_ready())  # so that no test's deadline is spent on connecting
        mesh = MeshChannel(raw, TOKEN, tracer)
        yield Served(server, interceptor, facts, mesh, raw)


@asynccontextmanager
async def serving_plainly(
    handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]], *, interceptors: Sequence[grpc.aio.ServerInterceptor] = ()
) -> AsyncIterator[str]:
    """Serve `handlers` as SERVICE with plain grpc.aio; gives the target."""
    server = grpc.aio.server(interceptors=list(interceptors))
    register(server, handlers)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(grace=None)


def register(server: Any, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
    """As the generated `add_…_to_server` does."""
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, dict(handlers)),))
    server.add_registered_method_handlers(SERVICE, dict(handlers))
