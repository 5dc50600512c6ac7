"""A temporary folder with a lock that shows if its owner is alive.

After `kill -9`, the owner cannot remove its folder, so the next mesh does. The owner holds a lock
on a file in the folder, and the kernel releases it however the process ends. A process id would not
be enough: another process may have it by now.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["clear_dead", "private_folder"]

PREFIX = "dmesh-"
_LOCK = "alive"


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder that only its owner may read, removed in the end.

    The folders of dead owners are removed first. Raises OSError.
    """
    clear_dead()
    with tempfile.TemporaryDirectory(prefix=PREFIX) as name:
        folder = Path(name)
        # Locked before it gets its name, so it is never found unlocked while its owner lives.
        nameless = folder / f"{_LOCK}.new"
        lock = os.open(nameless, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            nameless.rename(folder / _LOCK)
            yield folder
        finally:
            os.close(lock)


def clear_dead() -> list[Path]:
    """Remove the folders of dead owners, and return their paths.

    Folders of other users, and those without a lock file, stay.
    """
    cleared = []
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # locked, cleared by another process, or another user's
            about = folder.lstat()
            if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
                continue
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
                cleared.append(folder)
            finally:
                os.close(lock)
    return cleared
