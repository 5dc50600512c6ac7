"""A supervisor of several programs: it starts them, restarts dead ones, and ends them in order."""

from __future__ import annotations

import asyncio
import signal
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from deadlinemesh.local.adopted import adopt, end_adopted
from deadlinemesh.local.process import ChildProcess

__all__ = ["Child", "Program", "ProgramFailed", "Supervisor"]

FIRST_BACKOFF, LONGEST_BACKOFF = 0.1, 5.0
"""Seconds before a restart. Doubled with every quick death, up to LONGEST_BACKOFF."""

QUICK_DEATH = 10.0
"""Seconds. A program that lived for less has not recovered, and will likely die again."""

MOST_QUICK_DEATHS = 5
"""Quick deaths in a row before the supervisor gives up at the next one."""

START_GUARD = 60.0
"""Seconds until a program that is neither ready nor dead is given up. There is no other wait."""

LAST_LINES = 12
"""Lines of a program's log shown when it dies."""


@dataclass(frozen=True, slots=True)
class Program:
    """A program to run.

    It announces its port on standard output, and ends when its standard input is closed.
    """

    name: str
    command: Callable[[int], Sequence[str]]
    """Returns the command line for a port to listen on; 0 for a free port."""
    port_in: Callable[[str], int | None]
    """Returns the port that a line of output announces; None if it announces none."""
    environment: Callable[[int], Mapping[str, str]]
    """Returns the environment for a port to listen on."""


class ProgramFailed(Exception):
    """A program did not start, or died too often. The message ends with its last log lines."""


class Child:
    """A program and its present process. A restart keeps the port, because others know it."""

    def __init__(self, program: Program, log: Callable[[str, str], None]) -> None:
        self.name = program.name
        self.port = 0
        self.is_starting = False
        """True while the process may exist already, but its id is not known yet."""
        self._program = program
        self._write = log
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        self._process: ChildProcess | None = None
        self._ready_at = 0.0

    @property
    def pid(self) -> int:
        """The id of the present process; 0 before the first start."""
        return 0 if self._process is None else self._process.pid

    async def start(self, port: int) -> None:
        """Run the program and wait until it is ready.

        Raises ProgramFailed if it dies first, or is not ready after START_GUARD.
        """
        self._last.clear()
        loop = asyncio.get_running_loop()
        self._ready_at = loop.time()
        self.is_starting = True
        try:
            self._process = process = await ChildProcess.start(
                self._program.command(port), self._program.environment(port)
            )
        finally:
            self.is_starting = False
        ready: asyncio.Future[int] = loop.create_future()
        process.read_by(self._read_output(process.stdout, ready))
        process.read_by(self._read_log(process.stderr))
        died = loop.create_task(self._died())
        try:
            either: set[asyncio.Future[Any]] = {ready, died}
            await asyncio.wait(either, timeout=START_GUARD, return_when=asyncio.FIRST_COMPLETED)
            if died.done() and not ready.done():
                raise ProgramFailed(f"{self.name} did not start: {died.result()}{self.last_lines}")
            if not ready.done():
                self.kill()
                raise ProgramFailed(f"{self.name} was not ready after {START_GUARD:.0f} s{self.last_lines}")
        finally:
            died.cancel()
        self.port, self._ready_at = ready.result(), loop.time()

    async def keep(
        self,
        report: Callable[[str], None],
        restarted: Callable[[], None],
        clear: Callable[[], Awaitable[None]],
    ) -> None:
        """Restart the program each time it dies, after `clear`.

        Raises ProgramFailed after too many quick deaths.
        """
        loop = asyncio.get_running_loop()
        deaths = 0
        while True:
            how = await self._died()
            await clear()
            quick = loop.time() - self._ready_at < QUICK_DEATH
            deaths = deaths + 1 if quick else 1
            if deaths > MOST_QUICK_DEATHS:
                raise ProgramFailed(f"{self.name} died {deaths} times in a row, now: {how}{self.last_lines}")
            backoff = min(FIRST_BACKOFF * 2 ** (deaths - 1), LONGEST_BACKOFF)
            report(f"{self.name} died: {how}; starting it again in {backoff:.1f} s{self.last_lines}")
            await asyncio.sleep(backoff)
            with suppress(ProgramFailed):  # the next turn handles its death
                await self.start(self.port)
                report(f"{self.name} is back on port {self.port}")
                restarted()

    async def end(self) -> None:
        """Ask the program to finish its work, and wait until it has ended."""
        if self._process is not None:
            self._signal(signal.SIGTERM)
            self._signal(signal.SIGCONT)  # a stopped process does not handle SIGTERM
            await self._died()

    def kill(self) -> None:
        """Kill the program."""
        self._signal(signal.SIGKILL)

    @property
    def last_lines(self) -> str:
        """The last lines of its log, indented, each after a line break; empty without a log."""
        return "".join(f"\n    {line}" for line in self._last)

    async def _died(self) -> str:
        assert self._process is not None
        code = await self._process.ended()
        if code >= 0:
            return f"exit code {code}"
        return f"killed by {signal.Signals(-code).name}"

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _log(self, line: str) -> None:
        # If our log has no reader any more, still read the program's log. Else the program would
        # block.
        with suppress(OSError):
            self._write(self.name, line)

    async def _read_output(self, stream: asyncio.StreamReader, ready: asyncio.Future[int]) -> None:
        async for line in _lines(stream):
            port = None if ready.done() else self._program.port_in(line)
            if port is not None:
                ready.set_result(port)
            else:
                self._log(line)

    async def _read_log(self, stream: asyncio.StreamReader) -> None:
        async for line in _lines(stream):
            self._last.append(line)
            self._log(line)


class Supervisor:
    """Starts, restarts and ends programs.

    `report` is called with messages for the user. `log` is called with a program's name and each
    line of its output. With `adopts`, processes left by a dead program are killed. This process
    must then have no other children.
    """

    def __init__(self, report: Callable[[str], None], log: Callable[[str, str], None], *, adopts: bool = False) -> None:
        self.children: dict[str, Child] = {}
        self._report = report
        self._log = log
        self._adopts = adopts
        if adopts:
            adopt()

    async def start(self, program: Program, port: int = 0) -> Child:
        """Start a program on `port` and wait until it is ready. Raises ProgramFailed."""
        child = self.children[program.name] = Child(program, self._log)
        await child.start(port)
        return child

    async def start_all(self, *programs: Program) -> list[Child]:
        """Start independent programs at once. Raises ProgramFailed if one does not start."""
        started = await asyncio.gather(*(self.start(program) for program in programs), return_exceptions=True)
        for one in started:
            if isinstance(one, BaseException):
                raise one
        return [one for one in started if isinstance(one, Child)]

    async def keep(self, restarted: Callable[[], None]) -> None:
        """Restart dead programs until cancelled. `restarted` is called after each restart.

        Raises ProgramFailed if a program dies too often.
        """
        keepers = [
            asyncio.ensure_future(child.keep(self._report, restarted, self._end_adopted))
            for child in self.children.values()
        ]
        try:
            done, _ = await asyncio.wait(keepers, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in keepers:
                task.cancel()
            await asyncio.wait(keepers)

    async def end(self, *first: str) -> None:
        """End the programs named in `first`, one after the other, then all others at once."""
        for name in first:
            if name in self.children:
                await self.children[name].end()
        await asyncio.gather(*(child.end() for child in self.children.values()))
        await self._end_adopted()

    def kill(self) -> None:
        """Kill all programs."""
        for child in self.children.values():
            child.kill()

    async def _end_adopted(self) -> None:
        """End the processes that dead programs have left."""
        if self._adopts and (killed := await end_adopted(self._own)):
            self._report(f"killed {killed} processes that a dead service had left")

    def _own(self) -> set[int] | None:
        children = self.children.values()
        return None if any(child.is_starting for child in children) else {child.pid for child in children}


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    while True:
        try:
            line = await stream.readline()
        except ValueError:  # longer than any useful line; the reader has dropped it
            continue
        if not line:
            return
        yield line.decode(errors="replace").rstrip()
