"""The keeper: forks workers, kills them when it is told to, and with each of them all that it has left behind.

One process beside the tool-runner, with a single thread and without gRPC, so that it may fork. All workers are its children and
it is the subreaper of their descendants, so a process below it that is not a worker was left by one that has ended.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import socket
import struct
import sys
import traceback
from contextlib import suppress
from select import select
from typing import NoReturn

__all__ = ["COMMAND", "ENDED", "KILL", "START", "main"]

COMMAND = struct.Struct("!cI")
"""From the tool-runner: what to do, and a worker's number. With START comes the worker's end of its socket."""
START, KILL = b"S", b"K"

ENDED = struct.Struct("!Ii")
"""To the tool-runner: a worker's number, and its exit code or minus the number of the signal that killed it."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

_FAILED_TO_WORK = 70


def _prctl(option: int, value: int) -> None:
    """Linux's prctl(2); nothing elsewhere."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def main(control_fd: int) -> None:
    """Keep workers until the other end of the socket `control_fd` is closed."""
    # Imported and used once, so that no worker has to load what all of them need.
    from deadlinemesh.tool_runner.workers.worker_main import rehearse

    rehearse()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    for number in (signal.SIGINT, signal.SIGTERM):  # it ends with the tool-runner, which may want to drain first
        signal.signal(number, signal.SIG_IGN)
    gc.collect()
    gc.freeze()  # else the first collection in a worker would copy every page
    _Keeper(socket.socket(fileno=control_fd)).run()
    os._exit(0)  # somebody waits for it, and an interpreter takes its time to close


class _Keeper:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        control.set_inheritable(False)
        self._numbers: dict[int, int] = {}
        """Workers by process id."""
        self._ending: list[tuple[int, int]] = []
        """Workers that have ended, with their exit codes, but not yet all that they left behind."""
        self._woken, self._waking = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._waking, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._waking, warn_on_full_buffer=False)

    def run(self) -> None:
        while True:
            ready, _, _ = select([self._control.fileno(), self._woken], [], [])
            if self._woken in ready:
                with suppress(BlockingIOError):
                    os.read(self._woken, 4096)
                self._reap()
            if self._control.fileno() in ready and not self._obey():
                self._end_all()
                return

    def _obey(self) -> bool:
        """Do what the tool-runner wants. False when it is gone."""
        try:
            message, fds, _, _ = socket.recv_fds(self._control, COMMAND.size, 1)
        except ConnectionError:
            return False
        if len(message) != COMMAND.size:
            return False
        command, number = COMMAND.unpack(message)
        if command == START:
            self._start(number, fds[0])
        else:
            for pid in [pid for pid, known in self._numbers.items() if known == number]:
                _kill(pid)
        return True

    def _start(self, number: int, fd: int) -> None:
        keeper = os.getpid()
        try:
            pid = os.fork()
        except OSError:  # no more processes, or no memory
            os.close(fd)
            self._ending.append((number, _FAILED_TO_WORK))
            self._tell()
            return
        if pid == 0:
            self._be_a_worker(fd, keeper)
        os.close(fd)
        self._numbers[pid] = number

    def _be_a_worker(self, fd: int, keeper: int) -> NoReturn:
        try:
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() == keeper:
                # A session of its own: what it starts is one process group with it, unless it asks for another.
                os.setsid()
                _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # daemons stay below it, so that it can tell that it has some
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                self._control.close()
                os.close(self._woken)
                os.close(self._waking)
                os.set_inheritable(fd, False)
                from deadlinemesh.tool_runner.workers.worker_main import work

                work(socket.socket(fileno=fd))
        except BaseException:
            traceback.print_exc()
            os._exit(_FAILED_TO_WORK)
        os._exit(0)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid in self._numbers:
                self._ending.append((self._numbers.pop(pid), os.waitstatus_to_exitcode(status)))
        if self._ending:
            self._tell()

    def _tell(self) -> None:
        """Tell who has ended, once nothing is left of them. What dies meanwhile wakes the keeper again."""
        left = [pid for pid in _children() if pid not in self._numbers]
        for pid in left:
            _kill(pid)
        if not left:
            with suppress(ConnectionError):  # the tool-runner is gone, which the next turn finds out
                self._control.sendall(b"".join(ENDED.pack(number, code) for number, code in self._ending))
            self._ending.clear()

    def _end_all(self) -> None:
        while True:
            for pid in {*self._numbers, *_children()}:
                _kill(pid)
            try:
                pid, _ = os.waitpid(-1, 0)
            except ChildProcessError:
                return
            self._numbers.pop(pid, None)  # waited for, so that the id may soon be another's


def _kill(pid: int) -> None:
    """Kill a child of this process and its process group. It has not been waited for, so the id is no other's."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _children() -> list[int]:
    """The children of this process. Where there is no /proc, none are known but those that were started here."""
    own, found = os.getpid(), []
    try:
        names = os.listdir("/proc")
    except OSError:
        return []
    for name in names:
        if name.isdigit():
            with suppress(OSError, ValueError, IndexError):
                with open(f"/proc/{name}/stat", "rb") as file:
                    # The name of a process is in parentheses and may hold anything; its state and its parent follow.
                    after_name = file.read().rpartition(b") ")[2].split()
                if int(after_name[1]) == own:
                    found.append(int(name))
    return found
