"""The tool-runner's side of the keeper."""

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
"""Seconds for the keeper to confirm a KILL. Without a confirmation the keeper is assumed to be
stopped, perhaps by a tool. A confirmed KILL is repeated at this interval while the worker still
lives, as it does if it hangs in a system call.
"""

READY_WITHIN = 5.0
"""Seconds for the keeper to confirm a KILL before it has reported READY. On a busy machine it needs
time to import the modules that workers need.
"""

CLOSES_WITHIN = 5.0
"""Seconds for the keeper to end every worker and itself after CLOSE."""

WORKER_UIDS = (61184, 65519)
"""The first and last user id for workers, where the keeper may set one. systemd leaves this range
to services without a fixed user.
"""

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
"""Environment variables of the keeper and the workers. Workers also have those that the policy
names.
"""


class KeeperProcess(Protocol):
    """The process of a keeper, with the interface of `subprocess.Popen`."""

    @property
    def pid(self) -> int: ...
    def kill(self) -> None: ...
    def wait(self) -> int: ...


def _launched(
    control: socket.socket, mark: int, folder: str | None = None, uids: tuple[int, int] | None = None
) -> KeeperProcess:
    """Start a process that keeps workers for the other end of `control`.

    It takes `mark`. It gives each worker a folder in `folder`, and a user of `uids` where it may.
    Without `folder` or `uids`, workers get no folder or keep the user.
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
        stdout=2,  # a tool's prints belong in the log
        pass_fds=[control.fileno()],
        env={name: value for name, value in os.environ.items() if _NEEDED.fullmatch(name)},
        start_new_session=True,
    )


class Keeper:
    """A keeper process.

    Commands to it are queued from its start, so no caller waits until it is ready. The start takes
    the event loop about a millisecond. Raises OSError if the process cannot be started.

    `launched` starts the process. `uids` are the first and last user id that it may give to
    workers. With None, workers keep the tool-runner's user.
    """

    def __init__(
        self,
        launched: Callable[[socket.socket, int], KeeperProcess] | None = None,
        uids: tuple[int, int] | None = WORKER_UIDS,
    ) -> None:
        self.lost = False
        """True if the process is gone, and every worker with it."""
        self._loop = asyncio.get_running_loop()
        self._mark = new_mark()
        """The mark of the keeper, and so of every process below it."""
        self._folders: Folders | None = None
        """The workers' folders; None if another function launches the process."""
        self._workers: dict[int, Worker] = {}
        self._numbers = count(1)
        self._said = b""
        self._kills = 0
        """Number of KILL commands sent."""
        self._obeyed = 0
        """Number of KILL commands confirmed. They are confirmed in order."""
        self._answers_at = self._loop.time() + READY_WITHIN
        """The instant by when a KILL must have been confirmed."""
        self._closing = False
        self._gone: asyncio.Future[None] = self._loop.create_future()
        if launched is None:
            self._folders = Folders()
            launched = partial(_launched, folder=self._folders.path, uids=uids)
        self._control, theirs = socket.socketpair()
        self._control.setblocking(False)
        with theirs:
            # The process belongs to no call, although a call may be waiting for it.
            self._process = outside_any_scope().run(launched, theirs, self._mark)
        self._loop.add_reader(self._control, self._listen)

    def start(self, tenant_id: str) -> Worker:
        """Start a worker. It accepts calls at once, even before its process runs."""
        ours, theirs = socket.socketpair()
        worker = Worker(next(self._numbers), tenant_id, ours, self._kill)
        self._workers[worker.number] = worker
        with theirs:
            try:
                socket.send_fds(self._control, [COMMAND.pack(START, worker.number)], [theirs.fileno()])
            except OSError:  # the keeper is exiting, or is stopped and its socket is full
                self._lose()
        return worker

    async def aclose(self) -> None:
        """End every worker and the keeper."""
        if not self.lost:
            self._closing = True
            with suppress(OSError):  # the keeper is exiting, or is stopped and its socket is full
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
        if self.lost or self._closing:  # closing has its own time limit, and reports no end
            return
        if kill > self._obeyed:
            if (left := self._answers_at - self._loop.time()) > 0:
                self._loop.call_later(min(left, KILLS_WITHIN), self._see_obeyed, kill, number, context=Context())
            else:
                self._give_up()
        elif number in self._workers:
            # The keeper may have been stopped since. The confirmation of the next KILL will tell.
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
        """Mark the keeper as lost and kill it. Its workers end with it: the system kills them."""
        if self.lost:
            return
        self.lost = True
        self._loop.remove_reader(self._control)
        self._process.kill()  # before the socket is closed, a sign that the tool-runner has died
        self._process.wait()  # short: it was killed, or has just closed its last file
        self._control.close()
        if not self._closing:  # a keeper that closes has ended everything itself
            killed = kill_marked(self._mark)
            outside_any_scope().run(self._loop.run_in_executor, None, reap, killed)
        if self._folders is not None:
            self._folders.close()
        for worker in self._workers.values():
            worker.gone(None)
        self._workers.clear()
        self._gone.set_result(None)


def _path() -> list[str]:
    """The import path of this process.

    An empty entry means the working directory, and a tool may change that, so it is resolved.
    """
    return [entry or os.getcwd() for entry in sys.path]
