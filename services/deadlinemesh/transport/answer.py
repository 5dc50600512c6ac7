"""A call's context as its handler sees it, with the first sending guarded."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import suppress
from contextvars import Context
from typing import Any

from deadlinemesh.deadline.scope import outside_any_scope

__all__ = ["Answer"]


class Answer:
    """Decorates the context that grpc.aio gives a handler.

    What is sent first carries the response's headers, and is never cut in the middle: grpc.aio would take the headers for
    unsent and send them again with the status, the core would refuse both, and the client would be left without a status.
    """

    __slots__ = ("_context", "_opening", "write_on")

    def __init__(self, context: Any) -> None:
        self._context = context
        self.write_on: Callable[[Any], Awaitable[None]] = context.write
        """`write` for those who know that something was sent already."""
        self._opening: _Uncut | None = None

    def write(self, message: Any) -> Coroutine[Any, Any, None]:
        return self._guarded(self._context.write(message))

    def send_initial_metadata(self, metadata: Any) -> Coroutine[Any, Any, None]:
        return self._guarded(self._context.send_initial_metadata(metadata))

    def _guarded(self, sending: Coroutine[Any, Any, None]) -> Coroutine[Any, Any, None]:
        return self._open(sending) if self._opening is None else sending

    async def _open(self, sending: Coroutine[Any, Any, None]) -> None:
        self._opening = _Uncut(sending)
        await self._opening

    async def opened(self) -> None:
        """Wait until what was sent first, if anything was, has left."""
        if self._opening is not None and self._opening.rest is not None:
            await asyncio.wait({self._opening.rest})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


class _Uncut:
    """Awaits `sending`, which goes on when the task that awaits it is cancelled.

    `asyncio.shield` does that with a second task for every call. This makes the second task only when it comes to that:
    between `sending` and the task stands, as what the task waits for, this object instead of the future. It speaks the
    protocol of the two, but being cancelled lets go of the task and leaves the future.
    """

    __slots__ = ("_asyncio_future_blocking", "_context", "_future", "_sending", "_wake_up", "rest")

    def __init__(self, sending: Coroutine[Any, Any, None]) -> None:
        self._sending = sending
        self.rest: asyncio.Task[None] | None = None
        """What goes on after a cancellation."""

    def __await__(self) -> Generator[Any, None, None]:
        while True:
            try:
                self._future: asyncio.Future[Any] | None = self._sending.send(None)
            except StopIteration:
                return
            try:
                if self._future is None:  # only another turn of the event loop
                    yield
                else:
                    self._future._asyncio_future_blocking, self._asyncio_future_blocking = False, True
                    yield self
            except asyncio.CancelledError:
                self.rest = asyncio.get_running_loop().create_task(self._go_on(), context=outside_any_scope())
                raise
            except Exception:
                pass  # the future's own, which `sending` is about to find there

    async def _go_on(self) -> None:
        if self._future is not None:
            await asyncio.wait({self._future})
        with suppress(Exception):  # nobody is there to be told
            await self

    def get_loop(self) -> asyncio.AbstractEventLoop:
        assert self._future is not None
        return self._future.get_loop()

    def add_done_callback(
        self, wake_up: Callable[[asyncio.Future[Any]], object], *, context: Context | None = None
    ) -> None:
        assert self._future is not None
        self._wake_up, self._context = wake_up, context
        self._future.add_done_callback(wake_up, context=context)

    def cancel(self, msg: Any | None = None) -> bool:
        assert self._future is not None
        if not self._future.remove_done_callback(self._wake_up):
            return False  # it is done, and the task about to wake up
        cancelled: asyncio.Future[Any] = self._future.get_loop().create_future()
        cancelled.add_done_callback(self._wake_up, context=self._context)
        return cancelled.cancel(msg)
