"""The private folders of workers: each has its own for temporary files, home and work, which is removed when it has ended."""

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
    """The folder of one keeper's workers, whose folders are named by their numbers. It is locked as long as this process lives.

    Folders that dead tool-runners have left are removed when it is made.
    """

    def __init__(self) -> None:
        nameless = tempfile.mkdtemp(prefix=_NAMELESS)
        self._lock = _locked(nameless)  # before it has its name: nobody finds it unlocked while this process lives
        os.chmod(nameless, 0o711)  # a worker with a user of its own goes through it, and nobody lists it
        self.path = os.path.join(os.path.dirname(nameless), os.path.basename(nameless).replace(_NAMELESS, _PREFIX))
        os.rename(nameless, self.path)
        self._ended: SimpleQueue[int | None] = SimpleQueue()
        """Workers whose folders are to be removed; None at the end."""
        threading.Thread(target=self._remove, name="worker folders", daemon=True).start()

    def remove(self, number: int) -> None:
        """Remove the folder of a worker that has ended."""
        self._ended.put(number)

    def close(self) -> None:
        """Remove all of them."""
        self._ended.put(None)

    def _remove(self) -> None:
        # In a thread, since a folder may hold any number of files, and in one only, since many may end at once.
        _remove_abandoned()
        while (number := self._ended.get()) is not None:
            shutil.rmtree(f"{self.path}/{number}", ignore_errors=True)
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)


def _locked(path: str) -> int | None:
    """A file descriptor that holds the lock of a folder; None while another holds it, or the folder is not this user's."""
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
