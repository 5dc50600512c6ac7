"""The operations on runs: start, find, list and cancel."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain

from deadlinemesh.admission import Bulkhead, Held
from deadlinemesh.deadline import SYSTEM_CLOCK, Background, Clock, current
from deadlinemesh.errors import Cause, UpstreamFailed, Violations
from deadlinemesh.identity.callers import Tenant
from deadlinemesh.identity.grants import Grant
from deadlinemesh.orchestrator.events import RunStarted
from deadlinemesh.orchestrator.execution import Executor
from deadlinemesh.orchestrator.memory import COPIES, Memory
from deadlinemesh.orchestrator.planning import RunOrder, check_order
from deadlinemesh.orchestrator.ports import ModelPort, ToolPort
from deadlinemesh.orchestrator.run import GROWTH_BYTES, AgentRun
from deadlinemesh.orchestrator.store import MemoryRunStore, RunStore
from deadlinemesh.policy import GoOver, Past, Policy
from deadlinemesh.telemetry import Telemetry
from deadlinemesh.vocabulary.hops import ORCHESTRATOR

__all__ = ["Orchestrator"]


class Orchestrator:
    """The runs of one orchestrator. The gate has authenticated each call and granted its budget."""

    def __init__(
        self,
        policy: Policy,
        background: Background,
        models: ModelPort,
        tools: ToolPort,
        telemetry: Telemetry,
        clock: Clock = SYSTEM_CLOCK,
        store: RunStore | None = None,
    ) -> None:
        """`background` owns the scopes of runs. Without a `store`, runs are kept in memory."""
        self._policy = policy
        self._past: Past[Policy] = Past(clock)
        self._slots = Bulkhead("runs", policy.admission.runs, clock=clock, on_wait=telemetry.record)
        self._memory = Memory(policy, telemetry, ORCHESTRATOR)
        self._store = MemoryRunStore(policy.limits) if store is None else store
        self._executor = Executor(background, self._slots, models, tools, self._store, telemetry, self._memory.hit)
        self.prepared(policy)()

    @property
    def message_bytes(self) -> int:
        """Bytes of the largest message, by policy."""
        return self._policy.limits.message_bytes

    def prepared(self, policy: Policy) -> GoOver:
        """Prepare `policy` for later runs. Running runs keep the policy that they began with."""
        return partial(self._reconfigure, policy)

    def _reconfigure(self, policy: Policy) -> None:
        self._past.keep(self._policy, self._policy, policy)
        self._policy = policy
        self._memory.reconfigure(policy)
        self._store.reconfigure(policy.limits)
        self._slots.resize(policy.admission.runs, shares=policy.shares(), most_waiting=policy.admission.most_waiting)

    def flush(self) -> None:
        """Archive every run that has ended, now."""
        self._executor.flush()

    def hold_request(self, grant: Grant, size: int) -> Held:
        """Charge a request of `size` bytes to the tenant's call rate and memory.

        Raises TooLarge and Shed.
        """
        grant.charge(size)
        return self._memory.request(grant.tenant, size)

    def hold_reply(self, grant: Grant, size: int) -> Held:
        """Charge a reply of `size` bytes to the tenant's call rate and memory. Raises Shed.

        Release it at the end of the call: the client may read slowly.
        """
        grant.charge(size)
        return self._memory.take(grant.tenant.tenant_id, COPIES * size)

    def start(self, grant: Grant, order: RunOrder, size: int, found: Violations) -> tuple[AgentRun, bool]:
        """Start a run for the current call, unless the order's request id names a known run.

        Returns the run, and True if it was known before. `size` are the bytes of the order's
        message; a new run holds as much memory. Raises InvalidRequest for an invalid order, with
        the violations `found` before; Shed if memory is short; UpstreamFailed while the policy
        changes.
        """
        check_order(order, found, self._policy.limits.longest_arguments)
        tenant_id = grant.tenant.tenant_id
        if order.request_id and (known := self._store.by_request(tenant_id, order.request_id)) is not None:
            return known, True
        policy = self._policy_for(grant.tenant)
        held = self._memory.take(tenant_id, (COPIES - 1) * size + GROWTH_BYTES)
        here = current()
        run = AgentRun(
            here,
            grant,
            order.request_id or f"req_{here.run_id[4:]}",
            self._store.next_number(tenant_id),
            held,
            most=policy.limits.run_bytes,
            on_limit=partial(self._memory.hit, tenant_id),
        )
        self._store.claim(run)
        run.emit(RunStarted())
        self._executor.start(run, order, policy)
        return run, False

    def get(self, tenant_id: str, run_id: str) -> AgentRun:
        """The tenant's run. Raises NotFound."""
        return self._store.get(tenant_id, run_id)

    def runs(self, tenant_id: str) -> Iterator[AgentRun]:
        """The tenant's runs, newest first. Read them within one turn of the event loop."""
        return self._store.of(tenant_id)

    async def cancel(self, tenant_id: str, run_id: str) -> AgentRun:
        """Stop the tenant's run and wait for its end. Raises NotFound."""
        run = self._store.get(tenant_id, run_id)
        run.stop(Cause.CLIENT_CANCELLED)
        await run.ended()
        return run

    def _policy_for(self, tenant: Tenant) -> Policy:
        """The newest policy that has the tenant and all its models.

        The policy in force may be newer than the grant and give the tenant less.
        """
        for policy in chain((self._policy,), self._past):
            if tenant.tenant_id in policy.tenants and policy.models.keys() >= set(tenant.models):
                return policy
        raise UpstreamFailed("the policy is changing: try again", hop=ORCHESTRATOR)
