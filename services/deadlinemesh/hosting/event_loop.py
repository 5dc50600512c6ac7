"""The event loop of the services: uvloop's if it is installed, else asyncio's own.

For a unary call, uvloop saves more time than the mesh's transport costs (figures in
docs/decisions/hosting.md).
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
    """An event loop that only the main task can end. Name lookups do not delay each other.

    In other event loops, a SystemExit in any task ends the loop. So a tool of one tenant could end
    the calls of all with `sys.exit()`. Other loops also look names up in a few threads. Lookups of
    one host with a dead nameserver would occupy all of them.
    """

    def __init__(self) -> None:
        super().__init__()
        # The number is not bounded here. Each awaited lookup holds the place of a connection, and
        # policy bounds those. The thread of a cancelled lookup ends by itself when the resolver
        # gives up.
        self._lookups = Threads(math.inf)

    async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> Any:
        return await self.run_in_executor(self._lookups, partial(socket.getaddrinfo, host, port, **options))

    async def subprocess_exec(self, protocol_factory: Any, program: Any, *arguments: Any, **options: Any) -> Any:
        sys.audit(
            "subprocess.Popen", program, arguments, None, None
        )  # uvloop raises no audit event; scopes need one to own the process
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
                _LOG.exception("a task tried to exit the process")  # tasks that await it get it too


_NEVER = 1e10
"""Seconds. A stand-in for infinity, as that cannot be converted to milliseconds."""


class _OnAsyncio(_Undeterred, asyncio.SelectorEventLoop):
    pass


event_loop: Callable[[], asyncio.AbstractEventLoop]
"""Makes an event loop."""

try:
    import uvloop
except ImportError:  # as on Windows and PyPy
    event_loop = _OnAsyncio
else:

    class _OnUvloop(_Undeterred, uvloop.Loop):  # type: ignore[misc]  # its stub does not say that it is an AbstractEventLoop
        """uvloop with timers that are never early and, as in asyncio, less than a millisecond late.

        uvloop itself rounds a timer to the nearest millisecond, on a clock that cuts fractions off.
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
