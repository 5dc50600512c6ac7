"""The store of known runs, running and finished."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from typing import Protocol

from deadlinemesh.errors import NotFound, Violation, shown
from deadlinemesh.orchestrator.run import AgentRun
from deadlinemesh.policy import Limits

__all__ = ["MemoryRunStore", "RunStore"]


class RunStore(Protocol):
    """Finds runs by request id, by run id and by tenant.

    The events of a run are in its `EventLog`, by number.
    """

    def claim(self, run: AgentRun) -> None:
        """Register a run. Its request id must be free: `by_request` finds no run."""

    def by_request(self, tenant_id: str, request_id: str) -> AgentRun | None:
        """The tenant's run with this request id, or None."""

    def get(self, tenant_id: str, run_id: str) -> AgentRun:
        """The tenant's run. Raises NotFound, with the same text for runs of other tenants."""

    def of(self, tenant_id: str) -> Iterator[AgentRun]:
        """The tenant's runs, newest first. Read them within one turn of the event loop."""

    def next_number(self, tenant_id: str) -> int:
        """The number of the tenant's next run, from 1."""

    def release(self, run: AgentRun) -> None:
        """Forget a refused run."""

    def finish(self, run: AgentRun) -> None:
        """Keep a finished and archived run until it expires, or other runs need its room."""

    def reconfigure(self, limits: Limits) -> None:
        """Keep finished runs by `limits` from now on."""


class MemoryRunStore:
    """A `RunStore` in this process's memory.

    Finished runs are kept by `limits`: for `keep_finished_runs` seconds, at most
    `keep_runs_per_tenant` runs of a tenant, and at most `keep_bytes` for all. One tenant gets the
    share `keep_part` of these.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._by_id: dict[str, AgentRun] = {}
        self._by_request: defaultdict[str, dict[str, AgentRun]] = defaultdict(dict)
        """Each tenant's runs by request id, oldest first."""
        self._ended: dict[str, deque[tuple[float, AgentRun]]] = {}
        """Each tenant's finished runs with the instant of their end, oldest first."""
        self._sizes: Counter[str] = Counter()
        """Bytes of each tenant's finished runs."""
        self._size = 0
        """Bytes of all finished runs."""
        self._swept_at = 0.0
        """Instant of the last check of all tenants. Runs of a tenant that never comes back expire
        too."""
        self._counts: Counter[str] = Counter()

    def reconfigure(self, limits: Limits) -> None:
        """See `RunStore.reconfigure`."""
        self._limits = limits

    def claim(self, run: AgentRun) -> None:
        """See `RunStore.claim`."""
        self._by_id[run.run_id] = self._by_request[run.context.tenant_id][run.request_id] = run

    def by_request(self, tenant_id: str, request_id: str) -> AgentRun | None:
        """See `RunStore.by_request`."""
        self._expire(tenant_id)
        return self._by_request[tenant_id].get(request_id)

    def get(self, tenant_id: str, run_id: str) -> AgentRun:
        """See `RunStore.get`."""
        self._expire(tenant_id)
        run = self._by_id.get(run_id)
        if run is None or run.context.tenant_id != tenant_id:
            raise NotFound([Violation("run_id", f"{shown(run_id)} is not a run of yours, or was forgotten")])
        return run

    def of(self, tenant_id: str) -> Iterator[AgentRun]:
        """See `RunStore.of`."""
        self._expire(tenant_id)
        return reversed(self._by_request.get(tenant_id, {}).values())

    def next_number(self, tenant_id: str) -> int:
        """See `RunStore.next_number`."""
        self._counts[tenant_id] += 1
        return self._counts[tenant_id]

    def release(self, run: AgentRun) -> None:
        """See `RunStore.release`."""
        del self._by_id[run.run_id], self._by_request[run.context.tenant_id][run.request_id]

    def finish(self, run: AgentRun) -> None:
        """See `RunStore.finish`."""
        tenant_id, ended_at = run.context.tenant_id, run.ended_at
        self._ended.setdefault(tenant_id, deque()).append((ended_at, run))
        self._sizes[tenant_id] += run.size
        self._size += run.size
        self._expire(tenant_id)
        while self._size > self._limits.keep_bytes:
            self._drop_oldest(max(self._sizes, key=self._sizes.__getitem__))
        if ended_at - self._swept_at >= self._limits.keep_finished_runs / 10:
            self._swept_at = ended_at
            for each in tuple(self._ended):
                self._expire(each)

    def _expire(self, tenant_id: str) -> None:
        ended = self._ended.get(tenant_id)
        while ended:
            ended_at, run = ended[0]
            old = run.context.clock.monotonic() - ended_at >= self._limits.keep_finished_runs
            large = self._sizes[tenant_id] > self._limits.keep_part * self._limits.keep_bytes and len(ended) > 1
            if not (old or large) and len(ended) <= self._limits.keep_runs_per_tenant:
                return
            self._drop_oldest(tenant_id)

    def _drop_oldest(self, tenant_id: str) -> None:
        ended = self._ended[tenant_id]
        _, run = ended.popleft()
        self._sizes[tenant_id] -= run.size
        self._size -= run.size
        self.release(run)
        if not ended:
            del self._ended[tenant_id], self._sizes[tenant_id]
