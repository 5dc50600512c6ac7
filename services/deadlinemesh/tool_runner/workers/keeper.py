"""The tool-runner's hold on its keeper."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from functools import partial
from itertools import count
from typing import Protocol

from deadlinemesh.deadline.lowlevel import outside_any_scope
from deadlinemesh.tool_runner.workers.folders import Folders
from deadlinemesh.tool_runner.workers.keeper_main import CLOSE, COMMAND, ENDED, KILL, OBEYED, READY, REPORT, START
from deadlinemesh.tool_runner.workers.marks import kill_marked, new_mark, own_mark, reap
from deadlinemesh.tool_runner.workers.worker import Worker

__all__ = ["WORKER_UIDS", "Keeper"]

_LOG = logging.getLogger("deadlinemesh.tool_runner")

KILLS_WITHIN = 0.5
"""Seconds after which a keeper that was told to kill a worker, and has not said that it obeyed, is taken to stand still: a tool may
have stopped it. While the worker lives on, as one does that hangs in a system call, it is told again as often."""

READY_WITHIN = 5.0
"""The same, while it has not said yet that it runs: on a busy machine it takes its time to load what workers need."""

CLOSES_WITHIN = 5.0
"""The same, for one that was told to end every worker and itself."""

WORKER_UIDS = (61184, 65519)
"""The users that workers have where a keeper may set theirs: those that systemd leaves to services without one of their own."""

_PROGRAM = """
import json, sys
settings = json.loads(sys.argv[1])
sys.path[:] = settings.pop("path")
from deadlinemesh.tool_runner.workers.keeper_main import main
main(**settings)
"""

_NEEDED = re.compile(
    r"PATH|HOME|LANG|LANGUAGE|LC_\w+|TZ|TZDIR|TMPDIR|LD_LIBRARY_PATH|VIRTUAL_ENV|SSL_CERT_(FILE|DIR)"
    r"|PYTHON(PATH|HOME|UTF8|IOENCODING|HASHSEED|DONTWRITEBYTECODE|PYCACHEPREFIX|UNBUFFERED|WARNINGS|DEVMODE|FAULTHANDLER"
    r"|NOUSERSITE|SAFEPATH|OPTIMIZE|MALLOC)"
)
"""The environment variables that keeper and workers have. The workers also have those that policy names."""


class KeeperProcess(Protocol):
    """What a keeper runs in, as `subprocess.Popen` has it."""

    @property
    def pid(self) -> int: ...
    def kill(self) -> None: ...
    def wait(self) -> int: ...


def _launched(
    control: socket.socket, mark: int, folder: str | None = None, uids: tuple[int, int] | None = None
) -> KeeperProcess:
    """A process that keeps workers for the other end of `control`. It takes `mark`, gives each worker a folder in `folder`, and a
    user of `uids` where it may; without them neither.
    """
    settings = {
        "path": _path(),
        "control_fd": control.fileno(),
        "tool_runner": os.getpid(),
        "mark": mark,
        "starter_mark": own_mark(),
        "folder": folder,
        "uids": uids,
    }
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, json.dumps(settings)],
        stdin=subprocess.DEVNULL,
        stdout=2,  # what a tool prints belongs to the log
        pass_fds=[control.fileno()],
        env={name: value for name, value in os.environ.items() if _NEEDED.fullmatch(name)},
        start_new_session=True,
    )


class Keeper:
    """A keeper process. Commands to it are queued from the moment it is started, so nobody waits for it to be ready.

    Starting it takes the event loop about a millisecond. Raises OSError where it cannot be started. `launched` starts the process.
    `uids` are the first and the last user that it may give to workers; None leaves them the tool-runner's.
    """

    def __init__(
        self,
        launched: Callable[[socket.socket, int], KeeperProcess] | None = None,
        uids: tuple[int, int] | None = WORKER_UIDS,
    ) -> None:
        self.lost = False
        """Whether the process is gone, and every worker with it."""
        self._loop = asyncio.get_running_loop()
        self._mark = new_mark()
        """Of the keeper, and so of everything below it."""
        self._folders: Folders | None = None
        """The workers' folders, if they are processes of their own."""
        self._workers: dict[int, Worker] = {}
        self._numbers = count(1)
        self._said = b""
        self._kills = 0
        """KILLs that it has been told."""
        self._obeyed = 0
        """How many of them it has obeyed, the first ones."""
        self._answers_at = self._loop.time() + READY_WITHIN
        """The instant from which on it has to have obeyed."""
        self._closing = False
        self._gone: asyncio.Future[None] = self._loop.create_future()
        if launched is None:
            self._folders = Folders()
            launched = partial(_launched, folder=self._folders.path, uids=uids)
        self._control, theirs = socket.socketpair()
        self._control.setblocking(False)
        with theirs:
            # No call's, though one may be waiting for it.
            self._process = outside_any_scope().run(launched, theirs, self._mark)
        self._loop.add_reader(self._control, self._listen)

    def start(self, tenant_id: str) -> Worker:
        """A new worker. It takes calls at once, even before it is there."""
        ours, theirs = socket.socketpair()
        worker = Worker(next(self._numbers), tenant_id, ours, self._kill)
        self._workers[worker.number] = worker
        with theirs:
            try:
                socket.send_fds(self._control, [COMMAND.pack(START, worker.number)], [theirs.fileno()])
            except OSError:  # it is going, or stands still with a full socket
                self._lose()
        return worker

    async def aclose(self) -> None:
        """End every worker and the keeper."""
        if not self.lost:
            self._closing = True
            with suppress(OSError):  # it is going, or stands still with a full socket
                self._control.send(COMMAND.pack(CLOSE, 0))
            self._control.shutdown(socket.SHUT_WR)
            try:
                async with asyncio.timeout(CLOSES_WITHIN):
                    await asyncio.shield(self._gone)
            except TimeoutError:
                self._closing = False
                self._give_up()

    def _kill(self, number: int) -> None:
        try:
            self._control.send(COMMAND.pack(KILL, number))
        except OSError:
            self._lose()
        else:
            self._kills += 1
            self._loop.call_later(KILLS_WITHIN, self._see_obeyed, self._kills, number, context=Context())

    def _see_obeyed(self, kill: int, number: int) -> None:
        if self.lost or self._closing:  # closing has a limit of its own, and no worker's end is told during it
            return
        if kill > self._obeyed:
            if (left := self._answers_at - self._loop.time()) > 0:
                self._loop.call_later(min(left, KILLS_WITHIN), self._see_obeyed, kill, number, context=Context())
            else:
                self._give_up()
        elif number in self._workers:
            # It may have obeyed and been stopped since; its answer to the next one tells.
            self._kill(number)

    def _give_up(self) -> None:
        if not self.lost:
            _LOG.error(
                "the process that keeps the workers, %d, stands still: it is killed, with them", self._process.pid
            )
            self._lose()

    def _listen(self) -> None:
        try:
            heard = self._control.recv(4096)
        except BlockingIOError:
            return
        except ConnectionError:
            heard = b""
        if not heard:
            self._lose()
            return
        self._said += heard
        whole = len(self._said) - len(self._said) % REPORT.size
        for what, number, code in REPORT.iter_unpack(self._said[:whole]):
            if what == READY:
                self._answers_at = self._loop.time() + KILLS_WITHIN
            elif what == OBEYED:
                self._obeyed += 1
            elif what == ENDED and (worker := self._workers.pop(number, None)) is not None:
                worker.gone(code)
                if self._folders is not None and not self._closing:
                    self._folders.remove(number)
            else:
                _LOG.error("the keeper of the workers reports %r of %d, which is no report: it is killed", what, number)
                self._lose()
                return
        self._said = self._said[whole:]

    def _lose(self) -> None:
        """The keeper has gone, or is to go. Its workers go with it: the system kills them when it ends."""
        if self.lost:
            return
        self.lost = True
        self._loop.remove_reader(self._control)
        self._process.kill()  # before the socket is closed, which would tell it that the tool-runner has died
        self._process.wait()  # for what has been killed already, or has just closed its last file
        self._control.close()
        if not self._closing:  # else it has left nothing
            killed = kill_marked(self._mark)
            outside_any_scope().run(self._loop.run_in_executor, None, reap, killed)
        if self._folders is not None:
            self._folders.close()
        for worker in self._workers.values():
            worker.gone(None)
        self._workers.clear()
        self._gone.set_result(None)


def _path() -> list[str]:
    """Where modules are imported from here. The empty entry means the working directory, which a tool may change."""
    return [entry or os.getcwd() for entry in sys.path]
