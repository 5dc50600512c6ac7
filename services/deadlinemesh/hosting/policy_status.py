"""The policy in force in each process of a mesh: written by the process, read by `dmesh policy status`.

A file and no call: it tells the same of a process that does not answer, and nobody but its owner may read it.
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
"""Characters of the reason that are written: a file may be wrong on every line."""


@dataclass(frozen=True, slots=True)
class Told:
    """The status file of one process."""

    name: str
    pid: int
    status: PolicyStatus

    @property
    def lives(self) -> bool:
        """True while the process lives."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True


def write(path: Path, name: str, status: PolicyStatus) -> None:
    """Write what this process has in force. Where that is not possible, the log tells: the policy is in force all the same."""
    told = asdict(status) | {"why": status.why[:LONGEST_WHY], "name": name, "pid": os.getpid()}
    try:
        replace_private(path, json.dumps(told, ensure_ascii=False) + "\n")
    except OSError as error:
        _LOG.warning("which policy is in force cannot be written to %s: %s", path, error.strerror)


def read(path: Path) -> Told:
    """Read one status file. Raises OSError, and ValueError for any other file."""
    found = json.loads(path.read_text("utf-8"))
    try:
        return Told(found.pop("name"), found.pop("pid"), PolicyStatus(**found))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the status of a policy: {error}") from error


def read_all(paths: Iterable[Path]) -> list[Told]:
    """The statuses by name, without files that cannot be read: their processes have not written them yet."""
    found = []
    for path in paths:
        try:
            found.append(read(path))
        except (OSError, ValueError):
            continue
    return sorted(found, key=lambda told: told.name)
