"""The event loop that services run on: uvloop's where there is one, else asyncio's own.

uvloop gives a unary call back more than the mesh's transport takes (docs/decisions/hosting.md has the figures).
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Generator
from contextvars import Context
from functools import partial
from math import ceil
from typing import Any, TypeVar, TypeVarTuple

from deadlinemesh.deadline.lowlevel import Threads

__all__ = ["event_loop"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_LOG = logging.getLogger("deadlinemesh")


class _Undeterred(asyncio.AbstractEventLoop):
    """No task but the main one can end it, and no lookup of a name holds up another.

    A SystemExit ends other event loops, wherever it comes from: by `sys.exit()` in a task of its own, one tenant's tool would end
    the calls of all. And they look names up in a few threads: those of one host whose nameserver is dead would take them all.
    """

    def __init__(self) -> None:
        super().__init__()
        # As many as ask: of those that are waited for each has a connection's place, of which policy bounds the number, and one
        # that was cut ends by itself when the resolver gives up.
        self._lookups = Threads(math.inf)

    async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> Any:
        return await self.run_in_executor(self._lookups, partial(socket.getaddrinfo, host, port, **options))

    async def subprocess_exec(self, protocol_factory: Any, program: Any, *arguments: Any, **options: Any) -> Any:
        sys.audit(
            "subprocess.Popen", program, arguments, None, None
        )  # uvloop does not say so, and calls own what they start
        return await super().subprocess_exec(protocol_factory, program, *arguments, **options)

    async def subprocess_shell(self, protocol_factory: Any, cmd: Any, **options: Any) -> Any:
        sys.audit("subprocess.Popen", cmd, (), None, None)
        return await super().subprocess_shell(protocol_factory, cmd, **options)

    def run_until_complete(self, future: Generator[Any, None, T] | Awaitable[T]) -> T:
        main = asyncio.ensure_future(future, loop=self)  # type: ignore[arg-type]  # asyncio itself does so
        while True:
            try:
                return super().run_until_complete(main)
            except SystemExit:
                if main.done():
                    raise
                _LOG.exception("a task tried to exit the process")  # whoever awaits it is told as well


_NEVER = 1e10
"""An instant that no clock will show, as infinity has no milliseconds."""


class _OnAsyncio(_Undeterred, asyncio.SelectorEventLoop):
    pass


event_loop: Callable[[], asyncio.AbstractEventLoop]
"""Makes one."""

try:
    import uvloop
except ImportError:  # as on Windows and PyPy
    event_loop = _OnAsyncio
else:

    class _OnUvloop(_Undeterred, uvloop.Loop):  # type: ignore[misc]  # its stub does not say that it is an AbstractEventLoop
        """Its timers never come early, and less than a millisecond late, as asyncio's do: uvloop would set them to the millisecond
        that is nearest, on a clock that leaves the rest out.
        """

        time = staticmethod(time.monotonic)

        def call_at(
            self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
        ) -> asyncio.TimerHandle:
            milliseconds = ceil(min(when, _NEVER) * 1000) - int(time.monotonic() * 1000)
            return super().call_later(max(milliseconds, 0) / 1000, callback, *args, context=context)

        def call_later(
            self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
        ) -> asyncio.TimerHandle:
            return self.call_at(time.monotonic() + delay, callback, *args, context=context)

    event_loop = _OnUvloop
