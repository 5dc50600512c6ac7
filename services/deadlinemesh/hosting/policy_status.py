"""A file with the policy in force: written by each process, read by `dmesh policy status`.

It is a file and not a call, so that it also works if the process does not answer. Only its owner
may read it.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from deadlinemesh.hosting.private_files import replace_private
from deadlinemesh.policy import PolicyStatus

__all__ = ["Told", "read", "read_all", "write"]

_LOG = logging.getLogger("deadlinemesh.policy")

LONGEST_WHY = 4000
"""Characters of the reason that are written. A policy file may have an error on every line."""


@dataclass(frozen=True, slots=True)
class Told:
    """The status file of one process."""

    name: str
    pid: int
    status: PolicyStatus

    @property
    def lives(self) -> bool:
        """True if the process is alive."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True


def write(path: Path, name: str, status: PolicyStatus) -> None:
    """Write the status of this process. Only log a failure: the policy is in force anyway."""
    told = asdict(status) | {"why": status.why[:LONGEST_WHY], "name": name, "pid": os.getpid()}
    try:
        replace_private(path, json.dumps(told, ensure_ascii=False) + "\n")
    except OSError as error:
        _LOG.warning("which policy is in force cannot be written to %s: %s", path, error.strerror)


def read(path: Path) -> Told:
    """Read one status file. Raises OSError, or ValueError if it is no status file."""
    found = json.loads(path.read_text("utf-8"))
    try:
        return Told(found.pop("name"), found.pop("pid"), PolicyStatus(**found))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the status of a policy: {error}") from error


def read_all(paths: Iterable[Path]) -> list[Told]:
    """The statuses, sorted by name. Unreadable files are left out: they are not written yet."""
    found = []
    for path in paths:
        try:
            found.append(read(path))
        except (OSError, ValueError):
            continue
    return sorted(found, key=lambda told: told.name)
