"""A child process that has ended when it exits, even if its pipes are still open.

`asyncio.subprocess.Process.wait()` returns only when every pipe is closed too. A tool's process
that outlives its service may hold them open. The supervisor would wait for it without a limit.
"""

from __future__ import annotations

import asyncio
from asyncio.subprocess import PIPE, SubprocessStreamProtocol
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any

__all__ = ["READS_ON_S", "ChildProcess"]

READS_ON_S = 1.0
"""Seconds to read on from the pipes of a process that has ended."""

_LONGEST_LINE = 1024 * 1024
"""Bytes of the longest line read from a pipe."""


class _Streams(SubprocessStreamProtocol):
    """The pipes of a process as streams, and its exit as a future."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(_LONGEST_LINE, loop)
        self.exited: asyncio.Future[None] = loop.create_future()

    def process_exited(self) -> None:
        super().process_exited()
        if not self.exited.done():
            self.exited.set_result(None)


class ChildProcess:
    """A process in its own session, so that only its parent gets Ctrl-C.

    Its standard input is a pipe without any data.
    """

    def __init__(self, transport: asyncio.SubprocessTransport, streams: _Streams) -> None:
        self._transport = transport
        self._streams = streams
        self._readers: list[asyncio.Task[None]] = []

    @classmethod
    async def start(
        cls, command: Sequence[str], environment: Mapping[str, str], *, stderr: int | None = PIPE
    ) -> ChildProcess:
        """Run `command`. Raises OSError if that is not possible."""
        loop = asyncio.get_running_loop()
        pipes: Any = {"stdin": PIPE, "stdout": PIPE, "stderr": stderr}
        return cls(*await loop.subprocess_exec(_Streams, *command, env=environment, start_new_session=True, **pipes))

    @property
    def pid(self) -> int:
        """The process id. When the process has ended, another may get the same id."""
        return self._transport.get_pid()

    @property
    def stdout(self) -> asyncio.StreamReader:
        """The standard output, to be read."""
        assert self._streams.stdout is not None
        return self._streams.stdout

    @property
    def stderr(self) -> asyncio.StreamReader:
        """The standard error, to be read. Only for a process started with a pipe for it."""
        assert self._streams.stderr is not None
        return self._streams.stderr

    def read_by(self, reader: Coroutine[Any, Any, None]) -> None:
        """Run `reader`, to read one of the pipes, until READS_ON_S after the end of the process."""
        self._readers.append(asyncio.ensure_future(reader))

    async def ended(self) -> int:
        """Wait until the process has ended and its output is read, and return its exit code.

        The code is minus the number of the signal if a signal killed it.
        """
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
        """Send a signal to the process, unless it has ended."""
        if self._transport.get_returncode() is None:
            with suppress(ProcessLookupError):
                self._transport.send_signal(number)
