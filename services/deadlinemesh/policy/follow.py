"""Keeps a running process on the policy that its file says, and on the last good one while the file is wrong."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from deadlinemesh.errors import MeshError, choices
from deadlinemesh.policy.file import load
from deadlinemesh.policy.model import Policy

__all__ = ["EVERY", "PolicyFile", "Use", "refuse_what_stands"]

_LOG = logging.getLogger("deadlinemesh.policy")

EVERY = 1.0
"""Seconds between two looks. What the file says is compared, not its date or its inode: a ConfigMap's files are links that are
swapped, and a network's file systems tell nobody of a change."""

Use = Callable[[Policy], Coroutine[Any, Any, None] | None]
"""Goes over to a policy at once. Returns what has yet to end of the one before, if anything. Raises MeshError or ValueError, and
keeps the one before, where the new one cannot be used."""


def refuse_what_stands(was: Policy, wanted: Policy) -> None:
    """Raise ValueError where `wanted` says anew what was built into the processes as they started by `was`."""
    bytes_were, bytes_wanted = was.limits.message_bytes, wanted.limits.message_bytes
    if bytes_were != bytes_wanted:
        raise ValueError(
            f"limits.message_bytes: is {bytes_were} for as long as the processes run; restart them for {bytes_wanted}"
        )
    if set(was.pools()) != set(wanted.pools()):
        raise ValueError(
            f"dedicated: the pools are {choices(was.pools())}; restart all processes for {choices(wanted.pools())}"
        )


class PolicyFile:
    """The policy in the file at `path`, as it is and as it changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: bytes | None = None

    def load(self) -> Policy:
        """What the file says now. Raises PolicyError."""
        self._seen = self._said()
        return load(self._path)

    async def follow(self, use: Use) -> None:
        """Have each change `use`d, until cancelled. What cannot be used is logged, once."""
        ending: set[asyncio.Task[None]] = set()
        try:
            while True:
                await asyncio.sleep(EVERY)
                if self._said() == self._seen:
                    continue
                try:
                    rest = use(self.load())
                except (MeshError, ValueError) as error:
                    _LOG.error("the policy in force is kept, as the new one cannot be used: %s", error)
                    continue
                except Exception:  # a defect must not end the following: the next change may mend it
                    _LOG.exception("the policy in force is kept, as going over to the new one failed")
                    continue
                _LOG.info("a new policy is in force: %s", self._path)
                if rest is not None:
                    task = asyncio.ensure_future(rest)
                    ending.add(task)
                    task.add_done_callback(ending.discard)
        finally:
            if ending:
                await asyncio.wait(ending)

    def _said(self) -> bytes | None:
        try:
            return self._path.read_bytes()
        except OSError:
            return None
