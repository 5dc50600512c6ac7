"""gRPC without sockets: real stubs call real servicers through the real interceptor, in one event
loop.

Messages are serialized and parsed as on the wire. A call has a client side and a server side, each
with its own timer for the `grpc-timeout`. A cancel crosses from one side to the other after
`transit` seconds. `rounding` stretches the timeout on the way as the C core does (by a factor of up
to 1.03).
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import grpc

__all__ = ["MemoryChannel", "MemoryServer"]

Metadata = tuple[tuple[str, str | bytes], ...]

_END = object()


if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]


class _Details(NamedTuple):
    method: str
    invocation_metadata: Metadata


@dataclass(frozen=True, slots=True)
class _Status:
    code: grpc.StatusCode
    details: str
    trailing: Metadata


class _Metadatum(NamedTuple):
    key: str
    value: str | bytes


class MemoryServer:
    """Takes servicers like a `grpc.aio.Server`: pass it to the generated `add_…_to_server`."""

    def __init__(self, interceptor: grpc.aio.ServerInterceptor) -> None:
        self._interceptor = interceptor
        self._handlers: dict[str, Handler] = {}

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Part of the generated code's protocol. Does nothing: `add_registered_method_handlers`
        brings the same handlers.
        """

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Add a service's methods."""
        self._handlers.update({f"/{service}/{name}": handler for name, handler in handlers.items()})

    async def find(self, method: str, metadata: Metadata) -> Handler | None:
        """Return the handler behind the interceptor; None if there is none."""

        async def continuation(details: Any) -> Handler | None:
            return self._handlers.get(details.method)

        handler: Handler | None = await self._interceptor.intercept_service(
            continuation, cast(grpc.HandlerCallDetails, _Details(method, metadata))
        )
        return handler


class MemoryChannel(grpc.aio.Channel):
    """A channel to `server`. Wrap it in a `MeshChannel` like a real channel."""

    def __init__(self, server: MemoryServer, *, transit: float = 0.0, rounding: float = 1.0) -> None:
        self._server = server
        self.transit = transit
        """Seconds from one side to the other, for calls made from now on."""
        self._rounding = rounding

    def _multicallable(
        self, requests: Callable[[Any], AsyncIterator[Any]], method: str, encode: Any, decode: Any
    ) -> Callable[..., _Call]:
        encode, decode = encode or _as_it_is, decode or _as_it_is

        def call(
            request: Any = None,
            *,
            timeout: float | None = None,
            metadata: Iterable[tuple[str, str]] | None = None,
            **_: Any,
        ) -> _Call:
            encoded = (encode(one) async for one in requests(request))
            sent = tuple(metadata or ())
            return _Call(self._server, method, encoded, timeout, sent, decode, self.transit, self._rounding)

        return call

    def unary_unary(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any
    ) -> Any:
        return self._multicallable(_one, method, request_serializer, response_deserializer)

    def stream_unary(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any
    ) -> Any:
        return self._multicallable(_many, method, request_serializer, response_deserializer)

    unary_stream = unary_unary
    stream_stream = stream_unary

    async def close(self, grace: float | None = None) -> None:
        return None

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return grpc.ChannelConnectivity.READY

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await asyncio.get_running_loop().create_future()

    async def channel_ready(self) -> None:
        return None

    async def __aenter__(self) -> MemoryChannel:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None


class _Call:
    """Both sides of one RPC. The server's task runs in an empty context, as behind a socket."""

    def __init__(
        self,
        server: MemoryServer,
        method: str,
        requests: AsyncIterator[bytes],
        timeout: float | None,
        metadata: Metadata,
        decode: Callable[[bytes], Any],
        transit: float,
        rounding: float,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._decode = decode
        self._transit = transit
        self._responses: asyncio.Queue[Any] = asyncio.Queue()
        self._initial: asyncio.Future[Metadata] = loop.create_future()
        self._status: asyncio.Future[_Status] = loop.create_future()
        self._callbacks: list[Callable[[Any], None]] = []
        self._locally_cancelled = False
        self._deadline = None if timeout is None else loop.time() + timeout
        self._timer = None if timeout is None else loop.call_later(timeout, self._out_of_time)
        served_until = None if timeout is None else loop.time() + timeout * rounding
        self._requests = requests
        self._server_task = loop.create_task(self._serve(server, method, metadata, served_until), context=Context())
        self._server_timer = None if served_until is None else loop.call_at(served_until, self._cancel_server)

    # --- the server's side ---

    async def _serve(self, server: MemoryServer, method: str, metadata: Metadata, until: float | None) -> None:
        await self._cross()
        handler = await server.find(method, metadata)
        if handler is None:
            self._finish(_Status(grpc.StatusCode.UNIMPLEMENTED, "Method not found!", ()))
            return
        deserialize = handler.request_deserializer or _as_it_is
        parsed = (deserialize(raw) async for raw in self._requests)
        context = _ServicerContext(self, parsed, metadata, until, handler.response_serializer or _as_it_is)
        try:
            await self._handle(handler, parsed, context)
        except grpc.aio.AbortError:
            return
        except asyncio.CancelledError:
            return  # like grpc.aio: no status is sent
        except Exception as error:
            context.status = _Status(grpc.StatusCode.UNKNOWN, f"Unexpected {type(error)}: {error}", ())
        await self._cross()
        self._finish(context.status)

    async def _handle(self, handler: Handler, parsed: AsyncIterator[Any], context: _ServicerContext) -> None:
        request = parsed if handler.request_streaming else await anext(parsed)
        kind = ("stream" if handler.request_streaming else "unary", "stream" if handler.response_streaming else "unary")
        behaviour = getattr(handler, "_".join(kind))
        if inspect.isasyncgenfunction(behaviour):
            async for response in behaviour(request, context):
                await context.write(response)
            return
        response = await behaviour(request, context)
        if not handler.response_streaming and not context.done():
            await context.write(response)

    async def _cross(self) -> None:
        if self._transit:
            await asyncio.sleep(self._transit)

    # --- the client's side ---

    def _out_of_time(self) -> None:
        self._finish(_Status(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", ()))
        self._tell_server()

    def _tell_server(self) -> None:
        async def cancel() -> None:
            await self._cross()
            self._server_task.cancel()

        self._from_a_task(cancel())

    def _cancel_server(self) -> None:
        async def cancel() -> None:
            self._server_task.cancel()

        self._from_a_task(cancel())

    def _from_a_task(self, cancel: Coroutine[Any, Any, None]) -> None:
        # As in grpc.aio: the server's task is cancelled from another task, never from a timer.
        if self._server_task.done():
            cancel.close()
            return
        task = asyncio.get_running_loop().create_task(cancel, context=Context())
        self._server_task.add_done_callback(partial(_keep, task))

    def _finish(self, status: _Status) -> None:
        if self._status.done():
            return
        if not self._initial.done():
            self._initial.set_result(())
        self._status.set_result(status)
        self._responses.put_nowait(_END)
        for timer in (self._timer, self._server_timer if self._server_task.done() else None):
            if timer is not None:
                timer.cancel()
        for callback in self._callbacks:
            asyncio.get_running_loop().call_soon(callback, self)

    def cancel(self) -> bool:
        if self._status.done():
            return False
        self._locally_cancelled = True
        self._finish(_Status(grpc.StatusCode.CANCELLED, "Locally cancelled by application!", ()))
        self._tell_server()
        return True

    def cancelled(self) -> bool:
        return self._status.done() and self._status.result().code is grpc.StatusCode.CANCELLED

    def done(self) -> bool:
        return self._status.done()

    def time_remaining(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - asyncio.get_running_loop().time())

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        if self._status.done():
            callback(self)
        else:
            self._callbacks.append(callback)

    async def code(self) -> grpc.StatusCode:
        return self._status.result().code if self._status.done() else (await asyncio.shield(self._status)).code

    async def details(self) -> str:
        return (await asyncio.shield(self._status)).details

    async def initial_metadata(self) -> Metadata:
        return await asyncio.shield(self._initial)

    async def trailing_metadata(self) -> Metadata:
        return (await asyncio.shield(self._status)).trailing

    def _raise_for_status(self) -> None:
        status = self._status.result()
        if self._locally_cancelled:
            raise asyncio.CancelledError
        if status.code is not grpc.StatusCode.OK:
            initial = self._initial.result() if self._initial.done() else ()
            raise grpc.aio.AioRpcError(
                status.code, grpc.aio.Metadata(*initial), grpc.aio.Metadata(*status.trailing), status.details
            )

    async def read(self) -> Any:
        response = await self._responses.get()
        if response is _END:
            self._responses.put_nowait(_END)
            self._raise_for_status()
            return grpc.aio.EOF
        return self._decode(response)

    async def __aiter__(self) -> AsyncIterator[Any]:
        try:
            while (response := await self.read()) is not grpc.aio.EOF:
                yield response
        except asyncio.CancelledError:
            self.cancel()
            raise

    def __await__(self) -> Generator[Any, None, Any]:
        return self._unary().__await__()

    async def _unary(self) -> Any:
        try:
            response = await self.read()
            await asyncio.shield(self._status)
            self._raise_for_status()
            return response
        except asyncio.CancelledError:
            self.cancel()
            raise


class _ServicerContext:
    """The context of a call that its handler gets."""

    def __init__(
        self,
        call: _Call,
        requests: AsyncIterator[Any],
        metadata: Metadata,
        until: float | None,
        serialize: Callable[[Any], bytes],
    ) -> None:
        self.status = _Status(grpc.StatusCode.OK, "", ())
        self._call = call
        self._requests = requests
        self._metadata = tuple(_Metadatum(key, value) for key, value in metadata)
        self._until = until
        self._serialize = serialize

    def invocation_metadata(self) -> Metadata:
        return self._metadata

    def time_remaining(self) -> float | None:
        return None if self._until is None else max(0.0, self._until - asyncio.get_running_loop().time())

    def peer(self) -> str:
        return "memory:0"

    def done(self) -> bool:
        return self._call.done()

    async def send_initial_metadata(self, metadata: Iterable[tuple[str, str]]) -> None:
        if not self._call._initial.done():
            self._call._initial.set_result(tuple(metadata))

    async def read(self) -> Any:
        return await anext(self._requests, grpc.aio.EOF)

    async def write(self, message: Any) -> None:
        await self._call._cross()
        self._call._responses.put_nowait(self._serialize(message))

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._call.add_done_callback(lambda _: callback(self))

    def code(self) -> grpc.StatusCode | None:
        return None if self.status.code is grpc.StatusCode.OK else self.status.code

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> None:
        self.status = _Status(code, details, tuple(trailing_metadata))
        await self._call._cross()
        self._call._finish(self.status)
        raise grpc.aio.AbortError("Locally aborted.")

    async def abort_with_status(self, status: grpc.Status) -> None:
        await self.abort(status.code, status.details, tuple(status.trailing_metadata))


def _as_it_is(message: Any) -> Any:
    """Replaces a serializer that was not given, as in grpc."""
    return message


async def _one(request: Any) -> AsyncIterator[Any]:
    yield request


async def _many(requests: Any) -> AsyncIterator[Any]:
    if hasattr(requests, "__aiter__"):
        async for request in requests:
            yield request
    else:
        for request in requests:
            yield request


def _keep(task: asyncio.Task[None], _: object) -> None:
    """Keep a reference to `task` until it is called: the event loop alone keeps none."""
