"""A temporary folder that says whether its owner lives, so that the next one can clear what a killed one left.

`kill -9` leaves nobody to tidy up. So whoever has a folder holds a lock on a file in it, which the kernel takes back
however the process ends. An id would not do: it may be another process's by now.
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
    """A folder for its owner only, removed in the end. Those of dead predecessors are removed first. Raises OSError."""
    clear_dead()
    with tempfile.TemporaryDirectory(prefix=PREFIX) as name:
        folder = Path(name)
        # Locked before it has its name: nobody ever finds it unlocked while its owner lives.
        nameless = folder / f"{_LOCK}.new"
        lock = os.open(nameless, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            nameless.rename(folder / _LOCK)
            yield folder
        finally:
            os.close(lock)


def clear_dead() -> list[Path]:
    """Remove the folders whose owners are dead, and return them. What is not ours, or holds no lock's file, is not touched."""
    cleared = []
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # locked by its owner, cleared by another, or somebody else's
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
