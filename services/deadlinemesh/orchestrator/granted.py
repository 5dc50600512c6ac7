"""The gate of an orchestrator behind an edge, which has granted the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from deadlinemesh.deadline import SYSTEM_CLOCK, Clock, DeadlineContext
from deadlinemesh.errors import UpstreamFailed, shown
from deadlinemesh.identity.callers import Tenant
from deadlinemesh.identity.grants import MESH_GRANT, decode_grant
from deadlinemesh.policy import GoOver, Past, Policy
from deadlinemesh.transport import Admitted, Arrival, MeshGate
from deadlinemesh.vocabulary.hops import ORCHESTRATOR

__all__ = ["GrantedGate"]


class GrantedGate:
    """The gate of an orchestrator behind the edge, for the tenants of `pool`.

    It trusts the grants of callers with the mesh's token. A grant can only narrow: the deadline is
    the tightest of the call's own deadlines and the grant.
    """

    def __init__(self, policy: Policy, pool: str, mesh_token: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self._peers = MeshGate(ORCHESTRATOR, mesh_token, clock)
        self._pool = pool
        self._policy = policy
        self._tenants: Mapping[str, Tenant] = {}
        self._past: Past[Mapping[str, Tenant]] = Past(clock)
        self.prepared(policy)()

    def prepared(self, policy: Policy) -> GoOver:
        """Prepare `policy` for later calls."""
        pool = self._pool
        tenants = {one: Tenant.of(policy, one) for one in policy.tenants if policy.pool_of(one) == pool}

        def go_over() -> None:
            if policy is not self._policy:
                self._past.keep(self._tenants, self._policy, policy)
            self._policy, self._tenants = policy, tenants

        return go_over

    def __call__(self, arrival: Arrival) -> Admitted:
        context = self._peers(arrival).context
        tenant = self._tenants.get(context.tenant_id) or self._gone(context)
        if tenant is None:
            # Not the client's fault: the edge has another policy than this process, for a moment.
            raise UpstreamFailed(f"no orchestrator serves {shown(context.tenant_id)} just now: the policy is changing")
        grant = decode_grant(arrival.header(MESH_GRANT), tenant)
        context = context.tightened_to(arrival.at + grant.granted)
        return Admitted(replace(context, started_at=context.absolute_deadline - grant.granted), grant)

    def _gone(self, context: DeadlineContext) -> Tenant | None:
        """The tenant of a granted run, if a reload has removed it here meanwhile; else None."""
        past = self._past.serving(context.absolute_deadline)
        return next((tenants[context.tenant_id] for tenants in past if context.tenant_id in tenants), None)
