"""Confines a worker.

This protects the tool-runner's secrets, and the memory and files of other workers. Every limit is
permanent, and processes that a tool starts inherit it:

    a separate user     where the keeper may set one, as root may: files and processes of all other
                        users are out of reach
    no capabilities     and no way to gain any
    not dumpable        no process of the same user can read the worker's memory or environment,
                        until the worker executes another program
    Landlock            no process outside the worker's can be traced or signalled, and no temporary
                        folder but its own can be read. Needs no privilege, but Linux 5.13, and 6.12
                        for signals

Each applies where the system has it. `docs/operating.md` says how much protection is left without.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress

__all__ = ["Landlock", "become", "bound_capabilities", "forbid_dumps", "prctl", "usable_by"]

_PR_SET_DUMPABLE = 4
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522

_LINUX = sys.platform == "linux"
_LIBC = ctypes.CDLL(None, use_errno=True) if _LINUX else None


def prctl(option: int, value: int = 0) -> None:
    """Call Linux's prctl(2), ignoring errors. Does nothing on other systems."""
    if _LIBC is not None:
        _LIBC.prctl(option, value, 0, 0, 0)


def forbid_dumps() -> None:
    """Hide this process's memory, environment and files from other processes of its user.

    Root can still read them. Debuggers cannot.
    """
    prctl(_PR_SET_DUMPABLE, 0)


def bound_capabilities() -> None:
    """Deny every capability to all programs executed below this process.

    This holds for program files of any owner.
    """
    for capability in range(64):
        prctl(_PR_CAPBSET_DROP, capability)


def become(uid: int | None) -> None:
    """Switch to the user and group `uid`, unless it is None, and drop every capability permanently.

    Does nothing outside Linux.
    """
    if not _LINUX:
        return
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    assert _LIBC is not None
    header, none = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), bytes(24)
    _LIBC.capset(header, none)  # only root still has some here
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def usable_by(uid: int, paths: Iterable[str]) -> bool:
    """True if the user `uid` may read each of `paths` that exists.

    Forks, so call it before threads start.
    """
    existing = [path for path in paths if os.path.exists(path)]
    pid = os.fork()
    if pid == 0:
        code = 1
        with suppress(BaseException):
            become(uid)
            code = int(not all(os.access(path, os.R_OK | (os.X_OK if os.path.isdir(path) else 0)) for path in existing))
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


class Landlock:
    """The files that each worker may use: everything except temporary files of others.

    See landlock(7).

    Made once, in the keeper. Without Landlock in the kernel, `restrict` does nothing.
    """

    def __init__(self, readable: Iterable[str]) -> None:
        """Workers may read `readable` even in closed folders.

        These are the paths that Python imports from.
        """
        self.version = _syscall(_CREATE_RULESET, None, 0, 1) if _LINUX else -1
        self._rules: list[tuple[int, int]] = []
        """The rules for every worker: an open path, and the rights to it and below it."""
        if self.version < 1:
            return
        # The kernel refuses rights that it does not know. Each version knows more of them.
        self._all = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(self.version, 16)) - 1
        closed = {os.path.realpath(path) for path in (tempfile.gettempdir(), "/tmp", "/var/tmp")}
        for path in _around({*closed, "/dev"}):
            self._allow(path, self._all)
        # Semaphores and shared memory have unguessable names in /dev, so no worker may list it.
        self._allow("/dev", self._all & ~_READ_DIR)
        for path in readable:
            self._allow(path, self._all & (_EXECUTE | _READ_FILE | _READ_DIR))

    def restrict(self, folder: str) -> None:
        """Restrict this process to the rules for every worker, and to `folder`."""
        if self.version < 1:
            return
        scoped = _SCOPE_ABSTRACT_SOCKETS | _SCOPE_SIGNALS if self.version >= 6 else 0
        attributes = struct.pack("=QQQ", self._all, 0, scoped)
        size = 24 if self.version >= 6 else 16 if self.version >= 4 else 8
        ruleset = _syscall(_CREATE_RULESET, attributes, size, 0)
        if ruleset < 0:
            return
        own = os.open(folder, os.O_PATH | os.O_CLOEXEC)
        for path, rights in [*self._rules, (own, self._all)]:
            _syscall(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, path), 0)
        _syscall(_RESTRICT_SELF, ruleset, 0)
        for fd in (ruleset, own, *(path for path, _ in self._rules)):
            os.close(fd)

    def _allow(self, path: str, rights: int) -> None:
        with suppress(OSError):  # it is gone, or belongs to another user
            if not os.path.isdir(path):
                rights &= _FOR_FILES
            self._rules.append((os.open(path, os.O_PATH | os.O_CLOEXEC), rights))


_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE, _IOCTL_DEV = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14, 1 << 15
_FOR_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_SCOPE_ABSTRACT_SOCKETS, _SCOPE_SIGNALS = 1 << 0, 1 << 1


def _syscall(number: int, *arguments: bytes | int | None) -> int:
    assert _LIBC is not None
    return int(_LIBC.syscall(number, *arguments))


def _around(closed: set[str], folder: str = "/") -> Iterator[str]:
    """Yield the fewest paths that cover everything below `folder` except `closed`."""
    for entry in os.scandir(folder):
        path = entry.path
        if path in closed:
            continue
        if any(one.startswith(f"{path}/") for one in closed):
            with suppress(OSError):
                yield from _around(closed, path)
        elif not entry.is_symlink():
            yield path
