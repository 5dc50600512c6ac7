"""Keeps a process on the policy in its file, or on the last good one while the file is invalid."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deadlinemesh.deadline.lowlevel import REPORT_ORPHAN_AFTER
from deadlinemesh.errors import MeshError, choices
from deadlinemesh.policy.file import parse, text_in
from deadlinemesh.policy.model import Policy
from deadlinemesh.policy.past import GoOver, Rest
from deadlinemesh.policy.problems import PolicyError

__all__ = ["EVERY", "PolicyFile", "PolicyStatus", "Prepare", "refuse_what_stands"]

_LOG = logging.getLogger("deadlinemesh.policy")

EVERY = 1.0
"""Seconds between two checks of the file. Its content is compared, not its date or inode: the files
of a ConfigMap are links that are swapped, and network file systems do not notify of changes."""

Prepare = Callable[[Policy], GoOver]
"""Prepares a policy in a thread, beside the one in force. Raises MeshError or ValueError if the
policy cannot be used."""


@dataclass(frozen=True, slots=True)
class PolicyStatus:
    """The policy in force in a process, and the last one it refused. Instants are Unix times."""

    digest: str
    """The first 12 hexadecimal digits of the SHA-256 of the file; empty for the embedded policy."""
    since: float
    refused: str = ""
    """The digest of the file's current content if it was refused, `unreadable` if it cannot be
    read, else empty."""
    refused_at: float = 0.0
    why: str = ""
    """The error of the refused policy; empty if none was refused."""


def refuse_what_stands(was: Policy, wanted: Policy) -> None:
    """Raise ValueError if `wanted` changes a setting of `was` that needs a restart."""
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
    """Loads the policy in the file at `path`, and follows its changes.

    `beside` calls a function in a thread. `wall` returns the Unix time.
    """

    def __init__(
        self, path: Path, beside: Callable[..., Any] = asyncio.to_thread, wall: Callable[[], float] = time.time
    ) -> None:
        self._path = path
        self._beside = beside
        self._wall = wall
        self._seen = ""
        self.status = PolicyStatus("", wall())
        """The status since the last change."""

    def load(self) -> Policy:
        """Load the current policy. Raises PolicyError."""
        self._seen, text = self._look()
        policy = self._parsed(text)
        self.status = PolicyStatus(self._seen, self._wall())
        return policy

    async def follow(self, prepare: Prepare, tell: Callable[[PolicyStatus], None] = lambda _: None) -> None:
        """Prepare and apply each change of the file, until cancelled.

        `tell` is called with the status after each change. A policy that cannot be used is reported
        once. Reading, parsing and preparing do not block the event loop.
        """
        stopped = asyncio.Event()
        ending: set[asyncio.Task[None]] = set()
        try:
            while True:
                await asyncio.sleep(EVERY)
                seen, text = await self._beside(self._look)
                if seen == self._seen:
                    continue
                self._seen = seen
                try:
                    go_over = await self._beside(self._prepared, text, prepare)
                    rest = go_over()
                except (MeshError, ValueError) as error:
                    _LOG.error("the policy in force is kept, as the new one cannot be used: %s", error)
                    self._refused(str(error))
                except Exception as error:  # a defect must not end the loop: the next file may work
                    _LOG.exception("the policy in force is kept, as going over to the new one failed")
                    self._refused(f"going over to it failed: {type(error).__name__}: {error}")
                else:
                    _LOG.info("a new policy is in force: %s", self._path)
                    self.status = PolicyStatus(seen, self._wall())
                    if rest is not None:
                        task = asyncio.ensure_future(_end(rest, stopped))
                        ending.add(task)
                        task.add_done_callback(ending.discard)
                tell(self.status)
        finally:
            stopped.set()
            if ending:  # all calls have drained: only orphans can still hold up an end
                await asyncio.wait(ending, timeout=REPORT_ORPHAN_AFTER)

    def _look(self) -> tuple[str, str | PolicyError]:
        """A digest of the file's content, and the content. If unreadable, the error in both."""
        try:
            text = text_in(self._path)
        except PolicyError as error:
            return f"unreadable: {error}", error
        return hashlib.sha256(text.encode()).hexdigest()[:12], text

    def _parsed(self, text: str | PolicyError) -> Policy:
        if isinstance(text, PolicyError):
            raise text
        return parse(text, str(self._path))

    def _prepared(self, text: str | PolicyError, prepare: Prepare) -> GoOver:
        return prepare(self._parsed(text))

    def _refused(self, why: str) -> None:
        digest = self._seen.partition(":")[0]
        self.status = replace(self.status, refused=digest, refused_at=self._wall(), why=why)


async def _end(rest: Rest, stopped: asyncio.Event) -> None:
    """End `rest` when no run needs it any more, or when the process is about to end."""
    if rest.needed_for:
        stopping = asyncio.ensure_future(stopped.wait())
        await asyncio.wait({stopping}, timeout=rest.needed_for)
        stopping.cancel()
    await rest.end()
