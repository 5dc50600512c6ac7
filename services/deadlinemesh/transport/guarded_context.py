"""A call's context for its handler. It guards the first sending."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from math import inf
from typing import Any

import grpc

from deadlinemesh.deadline.lowlevel import HERE, outside_any_scope
from deadlinemesh.transport.gates import Admitted
from deadlinemesh.transport.stragglers import Exchange, Stage, Stragglers

__all__ = ["GuardedContext"]


class GuardedContext:
    """Decorates the context that grpc.aio gives a handler.

    The first sending carries the response's headers and is never cut in the middle. If it were cut,
    grpc.aio would take the headers for unsent and send them again with the status. The core would
    refuse both, and the client would get no status. `stragglers` watches that sending, so a peer
    that does not read it cannot hold the call up.
    """

    __slots__ = ("_context", "_exchange", "_first", "_left", "_opening", "_stragglers", "admitted")

    admitted: Admitted
    """The gate's decision. Set before the handler is called."""

    def __init__(self, context: Any, exchange: Exchange, stragglers: Stragglers) -> None:
        self._context = context
        self._exchange = exchange
        self._stragglers = stragglers
        self._first = True
        self._opening = False
        self._left: asyncio.Event | None = None

    def write(self, message: Any) -> Coroutine[Any, Any, None]:
        sending: Coroutine[Any, Any, None] = self._context.write(message)
        return self._open(sending) if self._first else self._send(sending)

    def send_initial_metadata(self, metadata: Any) -> Coroutine[Any, Any, None]:
        sending: Coroutine[Any, Any, None] = self._context.send_initial_metadata(metadata)
        return self._open(sending) if self._first else self._send(sending)

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Like the context's own method, but without its reference cycle through the call. A call
        in a cycle is not freed, and being freed is the way to end it (see `stragglers`).
        """
        context = self._context
        self._exchange.task.add_done_callback(lambda _: callback(context))

    async def end_with(self, status: grpc.Status) -> None:
        """End the call with `status` once the first sending has left, unless the call has ended by
        then.
        """
        if self._opening:
            self._left = self._left or asyncio.Event()
            await self._left.wait()
        if self._context.done():
            return
        try:
            await self._context.abort_with_status(status)
        except grpc.aio.AbortError as aborted:
            # The call keeps the error, and raises it again as soon as the handler has returned. The
            # frames of its traceback refer to the call: with them, the whole call would be one
            # reference cycle.
            aborted.__traceback__ = None
        except grpc.aio.InternalError:
            pass  # the peer has left

    async def _send(self, sending: Coroutine[Any, Any, None]) -> None:
        self._exchange.sending_since = asyncio.get_running_loop().time()
        await sending
        self._exchange.sending_since = inf

    async def _open(self, sending: Coroutine[Any, Any, None]) -> None:
        self._first, self._opening = False, True
        self._exchange.sending_since = asyncio.get_running_loop().time()
        self._stragglers.open(self._exchange)
        scope = HERE.get()[1]
        if scope is None or not scope.hold():
            await self._open_apart(sending)
            return
        try:
            await sending
            self._exchange.sending_since = inf
        finally:
            self._opened()
            cancelled = scope.let_go()
        if cancelled:
            await asyncio.sleep(0)  # raises the cancellation

    async def _open_apart(self, sending: Coroutine[Any, Any, None]) -> None:
        """Send for a task that the handler has started: no scope can put off its cancellation."""
        apart = asyncio.get_running_loop().create_task(sending, context=outside_any_scope())
        self._exchange.apart = apart
        apart.add_done_callback(self._opened)
        await asyncio.shield(apart)

    def _opened(self, apart: asyncio.Task[None] | None = None) -> None:
        self._opening = False
        if self._exchange.stage is Stage.FIRST_MESSAGE:
            self._exchange.work()
        if self._left is not None:
            self._left.set()
        if apart is not None and not apart.cancelled():
            apart.exception()  # marks the error as seen: nobody may await this task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)
