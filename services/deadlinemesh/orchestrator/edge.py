"""The edge: who is calling, and how much time the call is granted. The only place where budgets are made.

Whatever a caller says of its tenant, tier, run or remaining time is dropped; only its API key and its `grpc-timeout` count.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from uuid import uuid4

from deadlinemesh.deadline import SYSTEM_CLOCK, Clock, DeadlineContext
from deadlinemesh.errors import Doomed, Unauthenticated
from deadlinemesh.orchestrator.stagger import Stagger
from deadlinemesh.policy import Credentials, GoOver, Policy, Tenant
from deadlinemesh.transport import Arrival, wire

__all__ = ["HOP", "EdgeGate", "Grant", "current_grant", "set_grant"]

HOP = "orchestrator"

C_CORE_STRETCH = 1.045
"""A `grpc-timeout` from the C core may be this much longer than the caller's own timer: it is rounded up to three digits and then
one of the last values, up to 3% longer, may be sent instead (seen: 10.0 s arriving as 10.4 s)."""

APART = 0.002
"""Seconds between the ends of two runs, where there is room: about twice what an orchestrator needs to end one."""

STAGGER = 0.02
"""The part of its time that a run may have to give for that. It is mostly the C core's clients that need it: of those made a few
hundredths of a second apart, dozens arrive with the very same deadline."""


@dataclass(frozen=True, slots=True)
class Grant:
    """The edge's decision on one call. Durations are in seconds from the call's arrival."""

    tenant: Tenant
    granted: float
    """Until the deadline."""
    due: float
    """Until the answer must be on its way: the deadline less the response reserve."""
    requested: float | None
    """What the caller asked for; None for no deadline."""

    @property
    def reserve(self) -> float:
        """What is held back so that the answer reaches the caller before its own timer fires."""
        return self.granted - self.due

    @property
    def clipped(self) -> bool:
        """Whether the caller asked for more than its tier may have."""
        return self.requested is not None and self.requested > self.granted


_GRANT: ContextVar[Grant] = ContextVar("grant")


def current_grant() -> Grant:
    """The grant of the call being served."""
    return _GRANT.get()


def set_grant(grant: Grant) -> None:
    """Make `grant` that of the call at the gate."""
    _GRANT.set(grant)


class EdgeGate:
    """The gate that clients come to: authenticates by API key and grants the earlier of the caller's deadline and its tier's."""

    def __init__(self, policy: Policy, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._ends = Stagger(APART)
        self.prepared(policy)()

    def prepared(self, policy: Policy) -> GoOver:
        """Judge calls to come by `policy`: keys that it has not are refused at once."""
        credentials = Credentials(policy)

        def go_over() -> None:
            self._credentials, self._limits = credentials, policy.limits

        return go_over

    def __call__(self, arrival: Arrival) -> DeadlineContext:
        grant = self._grant(self._authenticated(arrival), arrival)
        set_grant(grant)
        return DeadlineContext(
            tenant_id=grant.tenant.tenant_id,
            absolute_deadline=arrival.at + grant.granted,
            tier=grant.tenant.tier,
            trace_id=wire.trace_id_of(arrival.header(wire.TRACEPARENT)) or wire.new_trace_id(),
            run_id=f"run_{uuid4().hex[:20]}",
            started_at=arrival.at,
            clock=self._clock,
        )

    def _authenticated(self, arrival: Arrival) -> Tenant:
        scheme, _, key = arrival.header("authorization").partition(" ")
        if not key or scheme.lower() != "bearer":
            raise Unauthenticated("send your API key as metadata `authorization: Bearer KEY`")
        tenant = self._credentials.tenant_of(key.strip())
        if tenant is None:
            raise Unauthenticated("this API key is unknown; it may have been revoked")
        return tenant

    def _grant(self, tenant: Tenant, arrival: Arrival) -> Grant:
        budget, requested = tenant.tier_policy.run_budget, arrival.native_remaining
        granted = due = budget
        if requested is not None:
            granted = min(budget, requested)
            due = min(budget, requested / _stretch(arrival.header("user-agent")))
        due -= self._limits.response_reserve
        if arrival.method.endswith("/Run"):
            if due < self._limits.shortest_run:
                raise Doomed(
                    f"a deadline of {granted * 1000:.0f} ms leaves {max(0.0, due) * 1000:.0f} ms to work in, once the answer's "
                    f"way back is set aside; at least {self._limits.shortest_run * 1000:.0f} ms are needed to do anything",
                    phase="admission",
                )
            due = self._staggered(due, arrival.at)
        return Grant(tenant, granted, due, requested)

    def _staggered(self, due: float, at: float) -> float:
        earliest = max(due * (1 - STAGGER), self._limits.shortest_run)
        return self._ends.place(at + due, at + earliest, at) - at


def _stretch(user_agent: str) -> float:
    """How much longer the timeout may have become on its way, judged by who encoded it.

    The C core names itself as `grpc-c/`; Go, Java and Node send what they were given.
    """
    return 1.0 if user_agent and "grpc-c/" not in user_agent else C_CORE_STRETCH
