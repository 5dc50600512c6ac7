"""A grant on its way from the edge to the orchestrator that carries it out. It is believed there, and made nowhere else.

Durations travel, as everywhere in the mesh. The deadline itself is the call's own; the grant tells how long before it the call
arrived at the edge. A run's time counts from there, so that the way to here is part of its admission.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from deadlinemesh.deadline import SYSTEM_CLOCK, Clock, DeadlineContext
from deadlinemesh.errors import InvalidRequest, UpstreamFailed, Violation, shown
from deadlinemesh.orchestrator.edge import Grant, set_grant
from deadlinemesh.policy import GoOver, Past, Policy, Tenant
from deadlinemesh.transport import Arrival, MeshGate
from deadlinemesh.vocabulary.hops import ORCHESTRATOR

__all__ = ["MESH_GRANT", "GrantedGate", "encode_grant"]

MESH_GRANT = "mesh-grant"
"""`granted=US;due=US;requested=US`: the edge's grant, in microseconds from the arrival there. No deadline was asked for where
`requested` is empty."""

_MESH_GRANT = re.compile(r"granted=([0-9]{1,16});due=([0-9]{1,16});requested=([0-9]{1,16})?")


def encode_grant(grant: Grant) -> tuple[str, str]:
    """The metadata that carries `grant`. What may be used is rounded down."""
    requested = "" if grant.requested is None else _microseconds(grant.requested)
    return MESH_GRANT, f"granted={_microseconds(grant.granted)};due={_microseconds(grant.due)};requested={requested}"


def _microseconds(seconds: float) -> int:
    # A client's timeout may have more digits than the header.
    return int(min(max(0.0, seconds) * 1_000_000, 10**16 - 1))


class GrantedGate:
    """The gate of an orchestrator behind the edge, for the tenants of `pool`: believes the grants of those that know the mesh's
    token. It can only narrow: what remains is the tightest of the call's own deadlines and the grant.
    """

    def __init__(self, policy: Policy, pool: str, mesh_token: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self._peers = MeshGate(ORCHESTRATOR, mesh_token, clock)
        self._pool = pool
        self._policy = policy
        self._tenants: Mapping[str, Tenant] = {}
        self._past: Past[Mapping[str, Tenant]] = Past(clock)
        self.prepared(policy)()

    def prepared(self, policy: Policy) -> GoOver:
        """Judge calls to come by `policy`."""
        pool = self._pool
        tenants = {one: Tenant.of(policy, one) for one in policy.tenants if policy.pool_of(one) == pool}

        def go_over() -> None:
            if policy is not self._policy:
                self._past.keep(self._tenants, self._policy, policy)
            self._policy, self._tenants = policy, tenants

        return go_over

    def __call__(self, arrival: Arrival) -> DeadlineContext:
        context = self._peers(arrival)
        tenant = self._tenants.get(context.tenant_id) or self._gone(context)
        if tenant is None:
            # Not the client's fault, and soon over where the edge has another policy than this.
            raise UpstreamFailed(f"no orchestrator serves {shown(context.tenant_id)} just now: the policy is changing")
        grant = _decoded(arrival.header(MESH_GRANT), tenant)
        set_grant(grant)
        context = context.tightened_to(arrival.at + grant.granted)
        return replace(context, started_at=context.absolute_deadline - grant.granted)

    def _gone(self, context: DeadlineContext) -> Tenant | None:
        """The tenant of a run that the edge has granted, and that a reload has taken away here meanwhile."""
        past = self._past.serving(context.absolute_deadline)
        return next((tenants[context.tenant_id] for tenants in past if context.tenant_id in tenants), None)


def _decoded(value: str, tenant: Tenant) -> Grant:
    match = _MESH_GRANT.fullmatch(value)
    if match is None or int(match[2]) > int(match[1]):
        raise InvalidRequest(
            [Violation(MESH_GRANT, "must be granted=US;due=US;requested=US, due within what is granted")]
        )
    granted, due, requested = (int(part) / 1_000_000 for part in match.groups("0"))
    return Grant(tenant, granted, due, None if match[3] is None else requested)
