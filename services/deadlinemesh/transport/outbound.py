"""Every call out of a hop: a channel that stamps the current deadline and identity on it, and ends it with its caller.

A decorator around `grpc.aio.Channel` rather than client interceptors: those have broken `cancel()` on streams and
`time_remaining()`. Generated stubs take a `MeshChannel` as they take a channel.
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
from deadlinemesh.transport import wire
from deadlinemesh.transport.spans import ClientSpans
from deadlinemesh.transport.throttling import Throttling, Watch

__all__ = ["MeshChannel", "StreamingCall"]


class MeshChannel(grpc.aio.Channel):
    """Decorates `channel`. A call made with no current DeadlineContext raises NoDeadline, and one whose time is spent
    DeadlineSpent, before anything is sent; so do, with Shed, calls of which the like were mostly shed lately. A call's own
    `timeout=` can only narrow; its `kind=` says what it is about, where a method's calls are of several kinds.
    """

    def __init__(self, channel: grpc.aio.Channel, mesh_token: str, tracer: trace.Tracer | None = None) -> None:
        self._channel = channel
        self._spans = None if tracer is None else ClientSpans(tracer)
        self._mesh_token = wire.checked_token(mesh_token)
        self._throttlings: dict[str, Throttling] = {}

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        # grpc.aio's own call object cancels itself when whoever awaits its one response is cancelled.
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
    """A tuple of pairs, as they are sent, that grpc.aio takes for its own Metadata.

    That one sorts them into lists by key and puts them together again, which costs a call as much as all that is done here.
    """

    __slots__ = ()
    __init__ = object.__init__


class _Multicallable:
    """Makes calls of one method; `guard` is what each is wrapped in."""

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
        # The tasks that grpc.aio has at work for a call end with the call. Cancelled instead, they would never free what the core
        # has given them: it is the call that the scope owns.
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
    """Have the current scope, if there is one, end `call`."""
    scope = current_scope()
    if scope is not None:
        disown = scope.own(call.cancel)
        call.add_done_callback(lambda _: disown())


class StreamingCall:
    """A call with a stream of responses that cannot be forgotten.

    grpc.aio leaves an abandoned stream running, even after a plain `break`. This one is cancelled when the iteration is left,
    when the `async with` block around it ends, and when the scope it was made in ends, whichever comes first. Anything else
    is the underlying call's.
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
    """The responses of `call`, and its end when nobody iterates any more: a loop drops its iterator as it is left.

    An async generator would do the same a turn of the event loop later, and cost each message a frame.

    Where a task is cancelled that awaits a response, so is the call, and the reading goes on to its end by itself: grpc.aio never
    frees what the core has given to one that was cut, a hundred bytes, or kilobytes where a message was just coming in. Only in a
    scope, that is in a service: a client's event loop may end before the reading does.
    """

    __slots__ = ("_batch", "_call", "_in_service", "_next", "_responses", "_watch")

    def __init__(self, call: Any, watch: Watch | None) -> None:
        self._call = call
        self._responses: AsyncIterator[Any] = call.__aiter__()
        self._next: Callable[[], Awaitable[Any]] = self._responses.__anext__
        self._watch = watch
        self._in_service = current_scope() is not None
        self._batch: asyncio.Future[Any] | None = None
        """What the core has at work for the reading that is awaited."""

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
                    self._batch = None  # which leads back here
        except StopIteration as read:
            return read.value

    def _leave(self, msg: Any | None = None) -> bool:
        """Stands for the batch's `cancel`: whoever awaits it is woken as if it had been cancelled, and it is not."""
        batch, self._batch = self._batch, None
        if batch is None:  # a second time before they have woken
            return True
        waiting = getattr(batch, "_callbacks", None)
        if not waiting:  # an event loop whose futures hide it
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
        # Left between two responses, grpc.aio's generator would keep the call, and that the generator, until a collection of the
        # old. One that is at work is not to be touched: its batch is the core's.
        responses = self._responses
        if isinstance(responses, AsyncGeneratorType) and not responses.ag_running:
            with suppress(StopIteration):
                responses.aclose().send(None)


def _go_on(steps: Generator[Any, Any, Any], _: object = None) -> None:
    """Take the next step of a reading that nobody awaits any more, and those that follow."""
    with suppress(Exception, asyncio.CancelledError):  # its end
        next(steps).add_done_callback(partial(_go_on, steps))
