"""The pool of workers: how many there are, their tenants, and their reuse.

A process that has run one tenant's call never runs another tenant's. Otherwise a tenant could find
the data that another one left in memory, in module variables or in the working directory. So an
idle worker waits for its own tenant. When the limit of processes is reached, the worker that has
been idle longest makes room. A fork costs about a millisecond, so this loses little.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial

from deadlinemesh.admission import Bulkhead, Share
from deadlinemesh.deadline import current
from deadlinemesh.policy.model import Policy
from deadlinemesh.tool_runner.outcome import Call
from deadlinemesh.tool_runner.workers.keeper import Keeper
from deadlinemesh.tool_runner.workers.worker import Worker, WorkerCall, WorkerReply

__all__ = ["Workers"]


class Workers:
    """The worker processes of one tool-runner.

    `bulkhead`, given a name and a limit, makes the bulkhead that limits concurrent calls, and so
    the processes. `environ` has the variables that the policy names for workers. `keeper` makes the
    keeper, the process that starts workers. It is called again if the keeper is lost.

    No process starts before the first call or `warm`. `aclose` ends all of them.
    """

    def __init__(
        self,
        policy: Policy,
        bulkhead: Callable[[str, int], Bulkhead],
        keeper: Callable[[], Keeper] = Keeper,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._bulkhead = bulkhead("tool workers", policy.tools.workers)
        self._new_keeper = keeper
        self._keeper: Keeper | None = None
        self._environ = environ
        self._environment: dict[str, str] = {}
        self._idle: dict[Worker, None] = {}  # an ordered set: the first has been idle longest
        self.reconfigure(policy, policy.shares())

    def reconfigure(self, policy: Policy, shares: Mapping[str, Share]) -> None:
        """Apply `policy` and these shares.

        Calls keep their processes, waiters keep waiting, and idle processes are reused.
        """
        self._policy = policy.tools
        named = policy.tools.worker_environment
        self._environment = {name: self._environ[name] for name in named if name in self._environ}
        self._answer_bytes = policy.limits.message_bytes
        self._bulkhead.resize(policy.tools.workers, shares=shares, most_waiting=policy.admission.most_waiting)
        self._make_room()

    @property
    def idle(self) -> tuple[Worker, ...]:
        """Workers that wait for another call of their tenants. The first has been idle longest."""
        return tuple(self._idle)

    def warm(self) -> None:
        """Start the keeper, so that the first call need not wait for it.

        Raises OSError if that fails.
        """
        self._kept()

    async def ask(self, question: WorkerCall, call: Call) -> WorkerReply:
        """Call a function in a worker of the current tenant.

        Waits for a slot within the current deadline. A cancellation ends the worker at once, and
        this returns when the process is gone. Raises Doomed, Shed or NoDeadline as the bulkhead
        does, and ToolError if the worker ends without a reply.
        """
        async with self._bulkhead.slot(question.tool), self._worker() as worker:
            answer = await worker.ask(question, call, self._answer_bytes)
            worker.reusable = (
                not answer.left
                and worker.environment == self._environment
                and worker.calls < self._policy.calls_per_worker
                and answer.memory_bytes <= self._policy.worker_memory_bytes
            )
            return answer

    async def aclose(self) -> None:
        """End all workers."""
        if self._keeper is not None:
            await self._keeper.aclose()

    @asynccontextmanager
    async def _worker(self) -> AsyncIterator[Worker]:
        """A worker of the current tenant for the block.

        It ends with the block, unless it has become reusable.
        """
        keeper, tenant_id = self._kept(), current().tenant_id
        own = (one for one in reversed(self._idle) if one.tenant_id == tenant_id and not one.ended.done())
        worker = next(own, None)
        if worker is None:
            self._make_room()
            worker = keeper.start(tenant_id)
            worker.environment = self._environment
            worker.ended.add_done_callback(partial(self._ended, worker))
        else:
            del self._idle[worker]
        try:
            yield worker
        finally:
            kept = worker.reusable and self._bulkhead.held <= self._bulkhead.limit  # a reload may lower it
            if kept and not worker.ended.done():
                self._idle[worker] = None
            else:
                await worker.end()

    def _make_room(self) -> None:
        """End idle workers that have an outdated environment.

        Then end those that have been idle longest, while there are too many beside the workers that
        run calls.
        """
        stale = [worker for worker in self._idle if worker.environment != self._environment]
        while self._idle and (stale or len(self._idle) + self._bulkhead.held > self._bulkhead.limit):
            worker = stale.pop() if stale else next(iter(self._idle))
            del self._idle[worker]
            worker.kill()
            worker.close()

    def _ended(self, worker: Worker, _: object) -> None:
        if worker in self._idle:
            del self._idle[worker]
            worker.close()

    def _kept(self) -> Keeper:
        if self._keeper is None or self._keeper.lost:
            self._keeper = self._new_keeper()
        return self._keeper
