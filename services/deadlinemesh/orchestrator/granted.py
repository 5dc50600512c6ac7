"""The grant on the wire, from the edge to the orchestrator that executes it. It is trusted there.

The grant travels as durations, like all times in the mesh. The deadline is the call's own. The
grant tells the call's arrival at the edge, as a time before the deadline. A run's time counts from
that arrival, so the way from the edge is part of its admission.
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
"""Metadata key of the edge's grant: `granted=US;due=US;requested=US`, in microseconds from the
arrival at the edge. `requested` is empty if the client set no deadline."""

_MESH_GRANT = re.compile(r"granted=([0-9]{1,16});due=([0-9]{1,16});requested=([0-9]{1,16})?")


def encode_grant(grant: Grant) -> tuple[str, str]:
    """The metadata entry for `grant`. Times are rounded down."""
    requested = "" if grant.requested is None else _microseconds(grant.requested)
    return MESH_GRANT, f"granted={_microseconds(grant.granted)};due={_microseconds(grant.due)};requested={requested}"


def _microseconds(seconds: float) -> int:
    # A client's timeout may have more digits than the header allows.
    return int(min(max(0.0, seconds) * 1_000_000, 10**16 - 1))


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

    def __call__(self, arrival: Arrival) -> DeadlineContext:
        context = self._peers(arrival)
        tenant = self._tenants.get(context.tenant_id) or self._gone(context)
        if tenant is None:
            # Not the client's fault: the edge has another policy than this process, for a moment.
            raise UpstreamFailed(f"no orchestrator serves {shown(context.tenant_id)} just now: the policy is changing")
        grant = _decoded(arrival.header(MESH_GRANT), tenant)
        set_grant(grant)
        context = context.tightened_to(arrival.at + grant.granted)
        return replace(context, started_at=context.absolute_deadline - grant.granted)

    def _gone(self, context: DeadlineContext) -> Tenant | None:
        """The tenant of a granted run, if a reload has removed it here meanwhile; else None."""
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
