"""Keeps a running process on the policy that its file says, and on the last good one while the file is wrong."""

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
"""Seconds between two looks. What the file says is compared, not its date or its inode: a ConfigMap's files are links that are
swapped, and a network's file systems tell nobody of a change."""

Prepare = Callable[[Policy], GoOver]
"""Makes all that a policy needs, in a thread, beside what is in use. Raises MeshError or ValueError where it cannot be used."""


@dataclass(frozen=True, slots=True)
class PolicyStatus:
    """What a process has in force, and what it would not have. Instants are Unix times."""

    digest: str
    """The first 12 hexadecimal digits of the SHA-256 of the file; empty for the embedded policy."""
    since: float
    refused: str = ""
    """The digest of what the file says now, where that cannot be used; `unreadable` where it cannot be read."""
    refused_at: float = 0.0
    why: str = ""
    """What is wrong with it; empty where nothing is."""


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
    """The policy in the file at `path`, as it is and as it changes. `beside` calls a function beside the event loop."""

    def __init__(
        self, path: Path, beside: Callable[..., Any] = asyncio.to_thread, wall: Callable[[], float] = time.time
    ) -> None:
        self._path = path
        self._beside = beside
        self._wall = wall
        self._seen = ""
        self.status = PolicyStatus("", wall())
        """Since the last change."""

    def load(self) -> Policy:
        """What the file says now. Raises PolicyError."""
        self._seen, text = self._look()
        policy = self._parsed(text)
        self.status = PolicyStatus(self._seen, self._wall())
        return policy

    async def follow(self, prepare: Prepare, tell: Callable[[PolicyStatus], None] = lambda _: None) -> None:
        """Have each change `prepare`d and go over to it, until cancelled, and `tell` what came of it. What cannot be used is told
        once. Reading, parsing and preparing do not hold up the event loop.
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
                except Exception as error:  # a defect must not end the following: the next change may mend it
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
            if ending:  # all have drained: what is not ended soon waits for orphans, which nobody waits for
                await asyncio.wait(ending, timeout=REPORT_ORPHAN_AFTER)

    def _look(self) -> tuple[str, str | PolicyError]:
        """What tells one content of the file from another, and the content; or why it cannot be read."""
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
    """End `rest` when no run needs it any more, or the process is about to end."""
    if rest.needed_for:
        stopping = asyncio.ensure_future(stopped.wait())
        await asyncio.wait({stopping}, timeout=rest.needed_for)
        stopping.cancel()
    await rest.end()
