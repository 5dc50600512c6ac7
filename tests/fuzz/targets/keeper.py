"""What the tool-runner and its keeper say to each other. The first byte says to whom: `r` reports to the tool-runner, else commands
to the keeper. What follows are records as `keeper_main` has them.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from contextlib import suppress

from tests.fuzz.reading import run

from deadlinemesh.tool_runner.workers import keeper_main
from deadlinemesh.tool_runner.workers.keeper import Keeper
from deadlinemesh.tool_runner.workers.keeper_main import COMMAND, OBEYED, REPORT, START

MAX_BYTES = 512
WORKERS = 3


def target(data: bytes) -> None:
    if data[:1] == b"r":
        run(_report(data[1:]))
    else:
        _command(data[1:])


class _Process:
    pid = 0

    def __call__(self, control: socket.socket, mark: int) -> _Process:
        self.control = control.dup()
        return self

    def kill(self) -> None: ...

    def wait(self) -> int:
        return -signal.SIGKILL


async def _report(data: bytes) -> None:
    process = _Process()
    keeper = Keeper(process)
    workers = [keeper.start("acme") for _ in range(WORKERS)]
    with process.control:
        process.control.sendall(data)
        process.control.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(5):
            await keeper._gone
    assert keeper.lost
    for worker in workers:
        assert worker.ended.done()
        worker.close()


class _NoForks(keeper_main._Keeper):
    """Obeys, but starts nothing."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._numbers = {}
        self.started: list[int] = []

    def _start(self, number: int, fd: int) -> None:
        os.close(fd)
        self.started.append(number)

    def _obey_all(self) -> None:
        while self._obey():
            pass


def _command(data: bytes) -> None:
    """Every other START comes with its file. The rest are as where the keeper may open no more files."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            file = _file(theirs.fileno())
            keeper = _NoForks(theirs)
            for index in range(0, len(data), COMMAND.size):
                record = data[index : index + COMMAND.size]
                has_file = record[:1] == START and len(record) == COMMAND.size and index % 2
                socket.send_fds(ours, [record], [theirs.fileno()] if has_file else [])
            ours.shutdown(socket.SHUT_WR)
            keeper._obey_all()
        heard = ours.recv(65536) if data else b""
    assert file not in _open_files()
    assert len(heard) % REPORT.size == 0
    assert len(heard) // REPORT.size + len(keeper.started) <= len(data) // COMMAND.size + 1
    assert all(what in (OBEYED, keeper_main.ENDED) for what, _, _ in REPORT.iter_unpack(heard))


def _file(fd: int | str) -> str:
    """The file behind `fd`, the same for each duplicate of it. A socket's name is never given twice."""
    return os.readlink(f"/proc/self/fd/{fd}")


def _open_files() -> set[str]:
    """The files this process has open, those of other threads too."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # closed meanwhile, as is the listing itself
            found.add(_file(fd))
    return found
