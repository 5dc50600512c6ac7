"""A child process whose end is its own: not that of its pipes, which whatever it has started may hold open.

`asyncio.subprocess.Process.wait()` returns once every pipe is closed as well: a tool's process that outlives its service would
keep the supervisor waiting for as long as it likes.
"""

from __future__ import annotations

import asyncio
from asyncio.subprocess import PIPE, SubprocessStreamProtocol
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any

__all__ = ["READS_ON_S", "ChildProcess"]

READS_ON_S = 1.0
"""Seconds after a process has ended in which its pipes are still read."""

_LONGEST_LINE = 1024 * 1024


class _Streams(SubprocessStreamProtocol):
    """The process's pipes as streams, and its end as a future."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(_LONGEST_LINE, loop)
        self.exited: asyncio.Future[None] = loop.create_future()

    def process_exited(self) -> None:
        super().process_exited()
        if not self.exited.done():
            self.exited.set_result(None)


class ChildProcess:
    """A process in a session of its own, as Ctrl-C is its parent's to hear. Its standard input is a pipe that nobody writes to."""

    def __init__(self, transport: asyncio.SubprocessTransport, streams: _Streams) -> None:
        self._transport = transport
        self._streams = streams
        self._readers: list[asyncio.Task[None]] = []

    @classmethod
    async def start(
        cls, command: Sequence[str], environment: Mapping[str, str], *, stderr: int | None = PIPE
    ) -> ChildProcess:
        """Run `command`. Raises OSError where that is not possible."""
        loop = asyncio.get_running_loop()
        pipes: Any = {"stdin": PIPE, "stdout": PIPE, "stderr": stderr}
        return cls(*await loop.subprocess_exec(_Streams, *command, env=environment, start_new_session=True, **pipes))

    @property
    def pid(self) -> int:
        """Its id; another process's, perhaps, once it has ended."""
        return self._transport.get_pid()

    @property
    def stdout(self) -> asyncio.StreamReader:
        """The standard output, to be read."""
        assert self._streams.stdout is not None
        return self._streams.stdout

    @property
    def stderr(self) -> asyncio.StreamReader:
        """The standard error, to be read; None where that is no pipe."""
        assert self._streams.stderr is not None
        return self._streams.stderr

    def read_by(self, reader: Coroutine[Any, Any, None]) -> None:
        """Have `reader` read one of its pipes: to the end, or to READS_ON_S after the process's own."""
        self._readers.append(asyncio.ensure_future(reader))

    async def ended(self) -> int:
        """Its exit code, minus a signal's number where that killed it, once it has ended and what it wrote is read."""
        await asyncio.shield(self._streams.exited)
        if self._readers:
            await asyncio.wait(self._readers, timeout=READS_ON_S)
            for reader in self._readers:
                reader.cancel()
        self._transport.close()
        code = self._transport.get_returncode()
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self._transport.get_returncode() is None:
            with suppress(ProcessLookupError):
                self._transport.send_signal(number)
