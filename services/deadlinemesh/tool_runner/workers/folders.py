"""The private folders of workers.

Each worker has a folder for its temporary files, home and working directory. It is removed when the
worker has ended.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

__all__ = ["Folders"]

_PREFIX = "dmesh-workers-"
_NAMELESS = "dmesh-new-workers-"


class Folders:
    """The parent folder of one keeper's worker folders, each named by the worker's number.

    This process holds a lock on it as long as it lives. Folders without a lock were left by dead
    tool-runners. A thread removes them when this object is made.
    """

    def __init__(self) -> None:
        nameless = tempfile.mkdtemp(prefix=_NAMELESS)
        self._lock = _locked(nameless)  # before its final name: never found unlocked
        os.chmod(nameless, 0o711)  # workers with other users may enter it, but not list it
        self.path = os.path.join(os.path.dirname(nameless), os.path.basename(nameless).replace(_NAMELESS, _PREFIX))
        os.rename(nameless, self.path)
        self._ended: SimpleQueue[int | None] = SimpleQueue()
        """Numbers of workers with folders to remove; None at the end."""
        threading.Thread(target=self._remove, name="worker folders", daemon=True).start()

    def remove(self, number: int) -> None:
        """Remove the folder of a worker that has ended."""
        self._ended.put(number)

    def close(self) -> None:
        """Remove all of them."""
        self._ended.put(None)

    def _remove(self) -> None:
        # In a thread, because a folder may hold any number of files. In a single thread, because
        # many workers may end at once.
        _remove_abandoned()
        while (number := self._ended.get()) is not None:
            shutil.rmtree(f"{self.path}/{number}", ignore_errors=True)
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)


def _locked(path: str) -> int | None:
    """Lock a folder and return the file descriptor that holds the lock.

    None if another process holds it, or the folder is not this user's.
    """
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            if os.fstat(fd).st_uid == os.geteuid():
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return fd
        except OSError:
            pass
        os.close(fd)
    return None


def _remove_abandoned() -> None:
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        lock = _locked(str(path))
        if lock is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)
