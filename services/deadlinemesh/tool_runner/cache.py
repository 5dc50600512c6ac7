"""Results of idempotent tools, cached for a while, separately for each tenant.

A read is part of the call and spends its time. If the store is slow, the call soon gives up and
runs the tool. A write delays no call. It is background work with its own deadline, on the account
of the tenant that caused it. It goes on after the end of the run that caused it, and is charged to
no other run.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from deadlinemesh.deadline import SYSTEM_CLOCK, Background, Clock, DeadlineContext, current, narrowed_after
from deadlinemesh.deadline.lowlevel import current_scope
from deadlinemesh.errors import DeadlineSpent
from deadlinemesh.policy.model import ToolsPolicy
from deadlinemesh.telemetry import CacheUsed, CacheWritten, Telemetry
from deadlinemesh.tool_runner.outcome import Tool
from deadlinemesh.vocabulary import ToolResult, ToolStatus

__all__ = ["CacheKey", "KeptResults", "MemoryCache", "ResultCache"]

_LOG = logging.getLogger("deadlinemesh.tool_runner")

READ_SHARE = 0.05
"""The largest share of a call's remaining time that a cache read may take."""

MOST_WRITES = 64
"""Concurrent writes of one tenant. More are skipped, so that a store that hangs cannot fill the
memory with pending results.
"""

_OVERHEAD = 500
"""Approximate bytes of an entry besides its content and arguments."""


@dataclass(frozen=True, slots=True)
class CacheKey:
    """The key of a result: tenant, tool and arguments. Tenants never share a key."""

    tenant_id: str
    tool: str
    arguments: str
    """Canonical JSON: sorted keys, no spaces, ASCII."""


class ResultCache(Protocol):
    """A store for results, in this process or elsewhere.

    Its exceptions are logged and never fail a call.
    """

    async def get(self, key: CacheKey) -> str | None:
        """Return the content stored under `key`, or None if there is none or it has expired.

        The current deadline is a small share of the call's remaining time.
        """

    async def put(self, key: CacheKey, content: str, seconds: float) -> None:
        """Keep `content` for `seconds`.

        The current context is the owner's, with the write's own deadline.
        """


@dataclass(frozen=True, slots=True)
class _Entry:
    content: str
    expires_at: float
    size: int


class _Shelf:
    """One tenant's entries, the least recently used first."""

    def __init__(self) -> None:
        self.entries: OrderedDict[CacheKey, _Entry] = OrderedDict()
        self.size = 0

    def remove(self, key: CacheKey) -> None:
        entry = self.entries.pop(key, None)
        self.size -= 0 if entry is None else entry.size


class MemoryCache:
    """The embedded store. It uses at most `most_bytes` of this process's memory in total.

    When it is full, it evicts the least recently used entry of the tenant that holds the most
    bytes. So a tenant that stores without end takes nothing from tenants that hold less.
    """

    def __init__(self, most_bytes: int, clock: Clock = SYSTEM_CLOCK) -> None:
        self._most_bytes = most_bytes
        self._clock = clock
        self._shelves: dict[str, _Shelf] = {}

    @property
    def size(self) -> int:
        """Approximate bytes in use."""
        return sum(shelf.size for shelf in self._shelves.values())

    def __len__(self) -> int:
        return sum(len(shelf.entries) for shelf in self._shelves.values())

    async def get(self, key: CacheKey) -> str | None:
        """See `ResultCache.get`."""
        shelf = self._shelves.get(key.tenant_id)
        entry = None if shelf is None else shelf.entries.get(key)
        if shelf is None or entry is None:
            return None
        if self._clock.monotonic() >= entry.expires_at:
            shelf.remove(key)
            return None
        shelf.entries.move_to_end(key)
        return entry.content

    async def put(self, key: CacheKey, content: str, seconds: float) -> None:
        """See `ResultCache.put`. An entry larger than the whole cache is not kept."""
        shelf = self._shelves.setdefault(key.tenant_id, _Shelf())
        shelf.remove(key)
        size = sys.getsizeof(content) + sys.getsizeof(key.arguments) + _OVERHEAD
        if size <= self._most_bytes:
            shelf.entries[key] = _Entry(content, self._clock.monotonic() + seconds, size)
            shelf.size += size
            self._make_room()
        if not shelf.entries:
            del self._shelves[key.tenant_id]

    def _make_room(self) -> None:
        while self.size > self._most_bytes:
            largest = max(self._shelves.values(), key=lambda shelf: shelf.size)
            largest.remove(next(iter(largest.entries)))


class KeptResults:
    """The cache policy: the results to keep, the time limit of reads, the owner of writes."""

    def __init__(
        self, cache: ResultCache, background: Background, tools: ToolsPolicy, telemetry: Telemetry, hop: str = ""
    ) -> None:
        self._cache = cache
        self._background = background
        self._read_budget = tools.cache_read_budget
        self._write_budget = tools.cache_write_budget
        self._telemetry = telemetry
        self._hop = hop
        self._writing: Counter[str] = Counter()

    async def find(self, tool: Tool, arguments: Mapping[str, Any]) -> ToolResult | None:
        """Return the current tenant's cached result of this call.

        None if there is none, or none in time.
        """
        if not _may_be_kept(tool):
            return None
        context = current()
        if (key := _key(context.tenant_id, tool.spec.name, arguments)) is None:
            return None
        began_at = context.clock.monotonic()
        patience = min(self._read_budget, context.remaining * READ_SHARE)
        # In a separate task, so that a store that delays its cancellation cannot delay the call.
        # The scope ends that task.
        read = asyncio.get_running_loop().create_task(self._read(key, patience), name=f"cache read {tool.spec.name}")
        try:
            await asyncio.wait([read], timeout=patience)
            content, problem = read.result() if read.done() else (None, "slow")
        finally:
            read.cancel()
        hit, seconds = content is not None, context.clock.monotonic() - began_at
        self._telemetry.record(
            CacheUsed(self._hop, context.tenant_id, context.run_id, tool.spec.name, hit, seconds, problem)
        )
        return None if content is None else ToolResult(ToolStatus.OK, content)

    def keep(self, tool: Tool, arguments: Mapping[str, Any], result: ToolResult) -> None:
        """Write the result of the current tenant's call in the background, if it may be kept.

        Does not wait.
        """
        if result.status is not ToolStatus.OK or not _may_be_kept(tool):
            return
        owner = current()
        tenant_id, asked_at = owner.tenant_id, owner.clock.monotonic()
        if (key := _key(tenant_id, tool.spec.name, arguments)) is None:
            return
        if self._writing[tenant_id] >= MOST_WRITES:
            self._tell(owner, tool.spec.name, asked_at, "crowded")
            return

        async def write() -> None:
            problem = ""
            try:
                problem = await self._written(key, result.content, tool.cache_for)
            finally:
                scope = current_scope()
                stopped = None if scope is None else scope.cause
                self._tell(owner, tool.spec.name, asked_at, problem if stopped is None else stopped.value)

        def over() -> None:
            self._writing[tenant_id] -= 1
            if not self._writing[tenant_id]:
                del self._writing[tenant_id]

        self._writing[tenant_id] += 1
        self._background.spawn(
            write, until=asked_at + self._write_budget, name=f"cache write {tool.spec.name}"
        ).when_over(over)

    def _tell(self, owner: DeadlineContext, tool: str, asked_at: float, problem: str) -> None:
        seconds = owner.clock.monotonic() - asked_at
        self._telemetry.record(CacheWritten(self._hop, owner.tenant_id, owner.run_id, tool, seconds, problem))

    async def _read(self, key: CacheKey, patience: float) -> tuple[str | None, str]:
        try:
            async with narrowed_after(patience, "cache"):
                return await self._cache.get(key), ""
        except DeadlineSpent:
            return None, "slow"
        except (Exception, asyncio.CancelledError) as error:
            _pass_on_a_cancel(error)
            _LOG.warning("the cache failed to read %s: %s: %s", key.tool, type(error).__name__, error)
            return None, "failed"

    async def _written(self, key: CacheKey, content: str, seconds: float) -> str:
        try:
            await self._cache.put(key, content, seconds)
        except (Exception, asyncio.CancelledError) as error:
            _pass_on_a_cancel(error)
            _LOG.warning("the cache failed to write %s: %s: %s", key.tool, type(error).__name__, error)
            return "failed"
        return ""


def _pass_on_a_cancel(error: BaseException) -> None:
    """Raise `error` if it is a cancellation of the running task.

    A CancelledError that the store raised without such a cancellation counts as a failure.
    """
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
        raise error


def _may_be_kept(tool: Tool) -> bool:
    return tool.spec.idempotent and tool.cache_for > 0


def _key(tenant_id: str, tool: str, arguments: Mapping[str, Any]) -> CacheKey | None:
    try:
        return CacheKey(tenant_id, tool, json.dumps(arguments, sort_keys=True, separators=(",", ":")))
    except RecursionError:  # arguments read in a thread may be nested too deeply for here
        return None
