"""The path of each call out of a hop: `MeshChannel` stamps the current deadline and identity on it,
and ends it with its caller.

It decorates `grpc.aio.Channel`. Client interceptors would break `cancel()` on streams and
`time_remaining()`. Generated stubs take a `MeshChannel` like any channel.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import suppress
from functools import partial
from types import AsyncGeneratorType, TracebackType, coroutine
from typing import Any, Self

import grpc
from opentelemetry import trace

from deadlinemesh.deadline import current
from deadlinemesh.deadline.lowlevel import HERE, current_scope
from deadlinemesh.errors import DeadlineSpent
from deadlinemesh.identity.peers import checked_token
from deadlinemesh.transport import wire
from deadlinemesh.transport.spans import ClientSpans
from deadlinemesh.transport.throttling import Throttling, Watch

__all__ = ["MeshChannel", "StreamingCall"]


class MeshChannel(grpc.aio.Channel):
    """Decorates `channel`: each call carries the current deadline and ends with its scope.

    A call raises before anything is sent: NoDeadline if there is no current DeadlineContext,
    DeadlineSpent if no time is left, Shed if similar calls were mostly shed lately. Its own
    `timeout=` can only narrow the deadline. Its `kind=` names its subject, if the calls of one
    method are of several kinds.

        channel = MeshChannel(grpc.aio.insecure_channel("search:50051"), mesh_token)
        stub = SearchServiceStub(channel)
        async with narrowed_after(2.0, "search"):
            reply = await stub.Search(request)
    """

    def __init__(self, channel: grpc.aio.Channel, mesh_token: str, tracer: trace.Tracer | None = None) -> None:
        self._channel = channel
        self._spans = None if tracer is None else ClientSpans(tracer)
        self._mesh_token = checked_token(mesh_token)
        self._throttlings: dict[str, Throttling] = {}

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        # grpc.aio's own call object cancels itself when a task that awaits its one response is
        # cancelled.
        return self._calling(method, self._channel.unary_unary(method, *args, **kwargs))

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._calling(method, self._channel.stream_unary(method, *args, **kwargs))

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._calling(method, self._channel.unary_stream(method, *args, **kwargs), StreamingCall)

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._calling(method, self._channel.stream_stream(method, *args, **kwargs), StreamingCall)

    def _calling(
        self, method: str, invoke: Any, guard: Callable[[Any, Watch | None], Any] | None = None
    ) -> _Multicallable:
        if method not in self._throttlings:
            self._throttlings[method] = Throttling(method)
        return _Multicallable(invoke, method, self._mesh_token, self._spans, self._throttlings[method], guard)

    async def close(self, grace: float | None = None) -> None:
        await self._channel.close(grace)
        if self._spans is not None:
            self._spans.flush()

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channel.channel_ready()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


class _Pairs(tuple[tuple[str, str | bytes], ...], grpc.aio.Metadata):  # type: ignore[misc]  # the tuple's methods win
    """A tuple of pairs, as they are sent, that grpc.aio accepts as its own Metadata.

    grpc.aio's class sorts the pairs into lists by key and joins them again. That costs a call as
    much as all the work of this module.
    """

    __slots__ = ()
    __init__ = object.__init__


class _Multicallable:
    """Makes calls of one method. `guard` wraps each call."""

    def __init__(
        self,
        invoke: Any,
        method: str,
        mesh_token: str,
        spans: ClientSpans | None,
        throttling: Throttling,
        guard: Callable[[Any, Watch | None], Any] | None = None,
    ) -> None:
        self._invoke = invoke
        self._method = method
        self._mesh_token = mesh_token
        self._spans = spans
        self._throttling = throttling
        self._guard = guard

    def __call__(
        self,
        request: Any = None,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
        kind: str = "",
    ) -> Any:
        context = current()
        if timeout is not None:
            context = context.tightened_after(timeout)
        remaining = context.absolute_deadline - context.clock.monotonic()
        if remaining <= 0:
            raise DeadlineSpent(f"no time is left to call {self._method}")
        watch = self._throttling.admit(context, kind)
        stamped = wire.encode(context, remaining, self._mesh_token)
        if metadata:
            stamped = (*metadata, *stamped)
        span = None
        if self._spans is not None:
            span = self._spans.begin(self._method, context)
            stamped = (*stamped, *span.carrier.items())
        # grpc.aio's tasks for a call end when the call ends. If they were cancelled instead, they
        # would never free the memory that the core has given them. So the scope owns the call, not
        # the tasks.
        token = HERE.set((context, None))
        try:
            call = self._invoke(
                request,
                timeout=remaining,
                metadata=_Pairs(stamped),
                credentials=credentials,
                wait_for_ready=wait_for_ready,
                compression=compression,
            )
        except BaseException as error:
            if span is not None:
                span.end_unsent(error)
            raise
        finally:
            HERE.reset(token)
        if span is not None:
            span.end_with(call)
        if watch is not None:
            call.add_done_callback(watch.ended)
        if self._guard is not None:
            return self._guard(call, watch)
        _owned(call)
        return call


def _owned(call: Any) -> None:
    """Have the current scope end `call`, if there is a current scope."""
    scope = current_scope()
    if scope is not None:
        disown = scope.own(call.cancel)
        call.add_done_callback(lambda _: disown())


class StreamingCall:
    """A call with a stream of responses that ends even if it is abandoned.

    grpc.aio leaves an abandoned stream running, even after a plain `break`. This call is cancelled
    when the iteration is left, when the `async with` block around it ends, or when the scope that
    made it ends. Other attributes are those of the underlying call.

        async for response in stub.Generate(request):
            if enough(response):
                break  # cancels the call
    """

    def __init__(self, call: Any, watch: Watch | None = None) -> None:
        self._call = call
        self._watch = watch
        _owned(call)

    def __aiter__(self) -> AsyncIterator[Any]:
        return _Responses(self._call, self._watch)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._call.cancel()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)


class _Responses:
    """The responses of `call`. The call ends when its iteration is abandoned, because a loop drops
    its iterator as it is left.

    An async generator would end the call one turn of the event loop later, and cost each message a
    frame.

    If a task is cancelled while it awaits a response, the call is cancelled too, but the read goes
    on to its end by itself. grpc.aio never frees the core's memory for a read that was cut: a
    hundred bytes, or kilobytes if a message was just coming in. This applies only inside a scope,
    so in a service. A client's event loop may end before the read does.
    """

    __slots__ = ("_batch", "_call", "_in_service", "_next", "_responses", "_watch")

    def __init__(self, call: Any, watch: Watch | None) -> None:
        self._call = call
        self._responses: AsyncIterator[Any] = call.__aiter__()
        self._next: Callable[[], Awaitable[Any]] = self._responses.__anext__
        self._watch = watch
        self._in_service = current_scope() is not None
        self._batch: asyncio.Future[Any] | None = None
        """The future of the core's operation for the read that is awaited."""

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Awaitable[Any]:
        reading = self._read_out(self._next()) if self._in_service else self._next()
        return reading if self._watch is None else self._first(reading)

    async def _first(self, reading: Awaitable[Any]) -> Any:
        assert self._watch is not None
        watch, self._watch = self._watch, None
        response = await reading
        watch.answered()
        return response

    @coroutine
    def _read_out(self, reading: Awaitable[Any]) -> Generator[Any, Any, Any]:
        steps = reading.__await__()
        try:
            waits_for = next(steps)
            while True:
                if type(waits_for) is asyncio.Future:
                    self._batch = waits_for
                    waits_for.cancel = self._leave  # type: ignore[method-assign]
                try:
                    yield waits_for
                except asyncio.CancelledError:
                    if waits_for.done():
                        _go_on(steps)
                    else:
                        waits_for.add_done_callback(partial(_go_on, steps))
                    raise
                except BaseException as error:
                    waits_for = steps.throw(error)
                else:
                    waits_for = next(steps)
                finally:
                    self._batch = None  # it refers back to this frame
        except StopIteration as read:
            return read.value

    def _leave(self, msg: Any | None = None) -> bool:
        """Replaces the future's `cancel`. Waiters wake up as if it had been cancelled, but it goes
        on.
        """
        batch, self._batch = self._batch, None
        if batch is None:  # called again before the waiters have run
            return True
        waiting = getattr(batch, "_callbacks", None)
        if not waiting:  # this event loop hides a future's callbacks
            return asyncio.Future.cancel(batch, msg)
        for wake_up, context in waiting:
            batch.remove_done_callback(wake_up)
            instead = batch.get_loop().create_future()
            instead.add_done_callback(wake_up, context=context)
            instead.cancel(msg)
        self._call.cancel()
        return True

    def __del__(self) -> None:
        if not self._call.done():
            self._call.cancel()
        # Close grpc.aio's generator. If the loop is left between two responses, the call and the
        # generator would else keep each other until a collection of the oldest generation. A
        # running generator must not be touched: the core works on its operation.
        responses = self._responses
        if isinstance(responses, AsyncGeneratorType) and not responses.ag_running:
            with suppress(StopIteration):
                responses.aclose().send(None)


def _go_on(steps: Generator[Any, Any, Any], _: object = None) -> None:
    """Take the next step of a read that no task awaits any more, and have the others follow."""
    with suppress(Exception, asyncio.CancelledError):  # the end of the read
        next(steps).add_done_callback(partial(_go_on, steps))
