"""The keeper forks workers, kills them on command, and kills every process that they leave.

It is one process beside the tool-runner, with a single thread and without gRPC, so it may fork. All
workers are its children, and it is the subreaper of their descendants. So any other child was left
by a worker that has ended.

The keeper and the tool-runner exchange messages of fixed size over a socket:

    START n      fork worker n; the worker's end of its socket comes along
    KILL n       kill worker n, if it exists; may be repeated
    CLOSE        the tool-runner closes the socket next, and has not died
    READY        the keeper runs. Before that, it imports the modules that workers need, and obeys
                 no command
    OBEYED n     confirms one KILL n, in order: the signals are sent. It shows only that the keeper
                 runs. A process that hangs in a system call dies when that call returns
    ENDED n, c   worker n is gone, and so are the processes that it is known to have left
"""

from __future__ import annotations

import gc
import os
import random
import shutil
import signal
import socket
import struct
import sys
import tempfile
import traceback
from contextlib import suppress
from select import select
from time import monotonic, sleep
from typing import NoReturn

from deadlinemesh.tool_runner.workers.confinement import (
    Landlock,
    become,
    bound_capabilities,
    forbid_dumps,
    prctl,
    usable_by,
)
from deadlinemesh.tool_runner.workers.inherited import Leftovers
from deadlinemesh.tool_runner.workers.marks import kill_marked, mark_process

__all__ = ["CLOSE", "COMMAND", "ENDED", "KILL", "OBEYED", "READY", "REPORT", "START", "main"]

COMMAND = struct.Struct("!cI")
"""From the tool-runner: a command and a worker's number. START carries the worker's end of its
socket.
"""
START, KILL, CLOSE = b"S", b"K", b"C"

REPORT = struct.Struct("!cIi")
"""To the tool-runner: a report, a worker's number and a code. The code of ENDED is the exit code,
or minus the number of the signal that killed the worker. OBEYED has the code 0. READY has number
and code 0.
"""
READY, OBEYED, ENDED = b"R", b"O", b"E"

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

_FAILED_TO_WORK = 70


_STARTER_ENDS_WITHIN_S = 2.0
"""Seconds that the tool-runner may take to end after it has closed its files."""


def main(
    control_fd: int,
    tool_runner: int,
    mark: int = 0,
    starter_mark: int = 0,
    folder: str | None = None,
    uids: tuple[int, int] | None = None,
) -> None:
    """Keep workers until the other end of the socket `control_fd` is closed.

    `tool_runner` is the id of the process that started this one. `mark` is for this process and all
    below it. If the tool-runner dies, every process with `starter_mark`, the tool-runner's mark, is
    killed. Workers have their folders in `folder`, which is removed at the end. `uids` are the
    first and last user id for workers.
    """
    mark_process(mark)
    forbid_dumps()
    # Imported and used once here, so that no worker has to load these modules.
    from deadlinemesh.tool_runner.workers.worker_main import rehearse

    # If a tool has stopped this process, SIGCONT wakes it when the tool-runner dies. It then sees
    # the closed socket and ends every worker. SIGKILL instead would leave processes that tools
    # started. It would also come too early: this signal is sent when the thread that started this
    # process ends.
    prctl(_PR_SET_PDEATHSIG, signal.SIGCONT)
    rehearse()
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    for number in (signal.SIGINT, signal.SIGTERM):  # it ends with the tool-runner, after any drain
        signal.signal(number, signal.SIG_IGN)
    confinement = _Confinement(folder, uids)
    gc.collect()
    gc.freeze()  # else the first collection in a worker would copy every page
    keeper = _Keeper(socket.socket(fileno=control_fd), confinement)
    keeper.run()
    if not keeper.closed and _has_ended(tool_runner):
        kill_marked(starter_mark, {os.getpid()})  # processes that async tools have started
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)  # the tool-runner waits for it, and a normal interpreter exit is slow


def _has_ended(tool_runner: int) -> bool:
    until = monotonic() + _STARTER_ENDS_WITHIN_S
    while os.getppid() == tool_runner and monotonic() < until:
        sleep(0.005)  # a dying process closes its files before its children get a new parent
    return os.getppid() != tool_runner


class _Confinement:
    """The limits of workers, as far as this process may set them."""

    def __init__(self, folder: str | None, uids: tuple[int, int] | None) -> None:
        self._folder = folder
        imported = [path for path in (*sys.path, sys.prefix, sys.base_prefix) if path]
        if uids is not None and not usable_by(uids[0], [sys.executable, *imported]):
            if os.geteuid() == 0:
                print(
                    f"tools run as root, without its capabilities: user {uids[0]} may not read all that Python imports from",
                    file=sys.stderr,
                    flush=True,
                )
            uids = None
        self._uids = uids
        self._next = 0 if uids is None else random.randint(*uids)  # several keepers seldom share a user
        self._taken: dict[int, int] = {}
        bound_capabilities()
        self._landlock = None if folder is None else Landlock(imported)

    def admit(self, number: int) -> None:
        """Choose the user of worker `number`, before its fork."""
        if self._uids is not None:
            first, last = self._uids
            taken = set(self._taken.values()) if len(self._taken) <= last - first else set()  # else users are shared
            while self._next in taken or not first <= self._next <= last:
                self._next = first if self._next >= last else self._next + 1
            self._taken[number] = self._next
            self._next += 1

    def dismiss(self, number: int) -> None:
        """Free the user of worker `number`.

        The worker and all processes that it started are gone.
        """
        self._taken.pop(number, None)

    def enter(self, number: int) -> None:
        """Confine this process, which is worker `number`."""
        uid = self._taken.get(number)
        os.umask(0o077)
        if self._folder is not None:
            own = f"{self._folder}/{number}"
            os.mkdir(own)
            if uid is not None:
                os.chown(own, uid, uid)
            os.chdir(own)
            os.environ.update(HOME=own, TMPDIR=own)
            tempfile.tempdir = None
        become(uid)
        if self._landlock is not None:
            self._landlock.restrict(own)
        forbid_dumps()


class _Keeper:
    def __init__(self, control: socket.socket, confinement: _Confinement) -> None:
        self.closed = False
        """True if the tool-runner has sent CLOSE."""
        self._confinement = confinement
        self._control = control
        control.set_inheritable(False)
        self._numbers: dict[int, int] = {}
        """Workers' numbers by process id."""
        self._ended: dict[int, tuple[int, int]] = {}
        """By number: process id and exit code of each dead worker that has not been reported as
        ended.
        """
        self._left = Leftovers()
        self._died: set[int] = set()
        """Processes that have been waited for since the last search for leftovers."""
        self._suspects: set[int] = set()
        """Numbers of the workers that these processes were, or may have been left by."""
        self._woken, self._waking = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._waking, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._waking, warn_on_full_buffer=False)

    def run(self) -> None:
        self._report(READY, 0)
        while True:
            ready, _, _ = select([self._control.fileno(), self._woken], [], [], self._rest())
            if self._woken in ready:
                with suppress(BlockingIOError):
                    os.read(self._woken, 4096)
            self._reap()
            self._tell()
            # Obey all pending commands in one go. Otherwise a search among thousands of processes
            # would precede each of them.
            while select([self._control], [], [], 0)[0]:
                if not self._obey():
                    self._end_all()
                    return

    def _rest(self) -> float | None:
        """Seconds until work is due that no event announces; None if there is none."""
        if self._died:
            return 0.0
        at = self._left.next_release_at
        return None if at is None else max(0.0, at - monotonic())

    def _obey(self) -> bool:
        """Obey one command of the tool-runner. False if the tool-runner is gone."""
        try:
            message, fds, _, _ = socket.recv_fds(self._control, COMMAND.size, 1)
        except ConnectionError:
            return False
        if len(message) != COMMAND.size:
            return False
        command, number = COMMAND.unpack(message)
        if command == START and fds:
            self._start(number, fds[0])
        elif command == START:  # this process has no free file descriptor
            self._report(ENDED, number, _FAILED_TO_WORK)
        elif command == CLOSE:
            self.closed = True
        else:
            for pid in [pid for pid, known in self._numbers.items() if known == number]:
                _kill(pid)
            self._report(OBEYED, number)
        return True

    def _start(self, number: int, fd: int) -> None:
        keeper = os.getpid()
        self._confinement.admit(number)
        try:
            pid = os.fork()
        except OSError:  # no more processes, or no memory
            os.close(fd)
            self._confinement.dismiss(number)
            self._report(ENDED, number, _FAILED_TO_WORK)
            return
        if pid == 0:
            self._be_a_worker(number, fd, keeper)
        os.close(fd)
        self._numbers[pid] = number

    def _be_a_worker(self, number: int, fd: int, keeper: int) -> NoReturn:
        try:
            from deadlinemesh.tool_runner.workers.worker_main import settle, work

            settle()
            self._confinement.enter(number)
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a change of user resets it
            if os.getppid() == keeper:
                # A separate session. Processes that it starts are in its process group, unless
                # they change it.
                os.setsid()
                prctl(_PR_SET_CHILD_SUBREAPER, 1)  # so it sees daemons and reports them
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                self._control.close()
                os.close(self._woken)
                os.close(self._waking)
                own = os.dup(fd)  # not inheritable, and with a low number
                os.close(fd)
                work(socket.socket(fileno=own))
        except BaseException:
            traceback.print_exc()
            os._exit(_FAILED_TO_WORK)
        os._exit(0)

    def _reap(self) -> None:
        """Wait for dead children, then kill the processes that they left."""
        self._wait()
        if not self._died:
            return
        suspects = self._suspects
        self._died, self._suspects = set(), set()
        found = _children()
        self._wait()  # processes that died during the search may have left some of the found ones
        suspects = suspects | self._suspects | self._left.owners
        sessions = self._numbers | {pid: number for number, (pid, _) in self._ended.items()}
        for pid, session in found.items():
            if pid in self._numbers or pid in self._left or pid in self._died:
                continue
            self._left.add(pid, {sessions[session]} if session in sessions else suspects, monotonic())
            _kill(pid)

    def _wait(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._died.add(pid)
            if pid in self._numbers:
                number = self._numbers.pop(pid)
                self._ended[number] = pid, os.waitstatus_to_exitcode(status)
                self._suspects.add(number)
            else:
                self._suspects |= self._left.gone(pid)

    def _tell(self) -> None:
        """Report each worker that has ended and has left no process."""
        for pid in self._left.release(monotonic()):
            print(f"process {pid}, left by a tool, was killed and does not end", file=sys.stderr, flush=True)
        for number in [one for one in self._ended if one not in self._suspects and not self._left.hold(one)]:
            _, code = self._ended.pop(number)
            self._confinement.dismiss(number)
            self._report(ENDED, number, code)

    def _report(self, what: bytes, number: int, code: int = 0) -> None:
        with suppress(ConnectionError):  # the tool-runner is gone, as the next turn will find
            self._control.sendall(REPORT.pack(what, number, code))

    def _end_all(self) -> None:
        while True:
            for pid in {*self._numbers, *_children()}:
                _kill(pid)
            try:
                pid, _ = os.waitpid(-1, 0)
            except ChildProcessError:
                return
            self._numbers.pop(pid, None)  # waited for: the id may be reused soon


def _kill(pid: int) -> None:
    """Kill a child of this process, and its process group.

    The child has not been waited for, so no other process has its id.
    """
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _children() -> dict[int, int]:
    """The process ids of this process's children, with their sessions. Empty without /proc."""
    own, found = os.getpid(), {}
    try:
        names = os.listdir("/proc")
    except OSError:
        return {}
    for name in names:
        if name.isdigit():
            with suppress(OSError, ValueError, IndexError):
                with open(f"/proc/{name}/stat", "rb") as file:
                    # The name of a process is in parentheses and may hold anything. State,
                    # parent, group and session follow.
                    after_name = file.read().rpartition(b") ")[2].split()
                if int(after_name[1]) == own:
                    found[int(name)] = int(after_name[3])
    return found
