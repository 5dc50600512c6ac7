"""The edge: who is calling, and how much time the call is granted. The only place where budgets are made.

Whatever a caller says of its tenant, tier or run is dropped; only its API key and its deadline count, the tighter of `grpc-timeout`
and `deadline-remaining-us`. Either can only narrow the tier's budget.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from uuid import uuid4

from deadlinemesh.deadline import SYSTEM_CLOCK, Clock, DeadlineContext
from deadlinemesh.errors import Doomed, Unauthenticated
from deadlinemesh.orchestrator.stagger import Stagger
from deadlinemesh.policy import Credentials, Policy, Tenant
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

EXACT_HELD = 0.9
"""The part of the response reserve that is held back of an exact deadline. The rest is for what the
deadline loses until it is read here: as the client sees it, the reserve is held back in all."""

LEAST_HELD = 0.5
"""The least part of the reserve that is held back of an exact deadline, where the run is kept apart
from others by ending later: ended with them it would be as late."""

TOGETHER = 4
"""The most runs with exact deadlines that end in the same APART before another has to give STAGGER.
That is what an orchestrator can end within the reserve: about a hundred in 0.1 s."""


@dataclass(frozen=True, slots=True)
class Grant:
    """The edge's decision on one call. Durations are in seconds from the call's arrival."""

    tenant: Tenant
    granted: float
    """Until the deadline."""
    due: float
    """Until the answer must be on its way: the deadline less the response reserve."""
    requested: float | None
    """What was left of the caller's deadline; None without one."""

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
        self.use(policy)

    def use(self, policy: Policy) -> None:
        """Judge calls to come by `policy`."""
        self._credentials = Credentials(policy)
        self._limits = policy.limits

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
        budget, requested = tenant.tier_policy.run_budget, arrival.remaining
        reserve = self._limits.response_reserve
        granted = usable = budget
        if requested is not None:
            granted = min(budget, requested)
            usable = min(budget, _least_left(requested, arrival))
        due = latest = usable - reserve
        if arrival.exact is not None:
            due, latest = usable - EXACT_HELD * reserve, usable - LEAST_HELD * reserve
        if arrival.method.endswith("/Run"):
            if due < self._limits.shortest_run:
                raise Doomed(
                    f"a deadline of {granted * 1000:.0f} ms leaves {max(0.0, due) * 1000:.0f} ms to work in, once the answer's "
                    f"way back is set aside; at least {self._limits.shortest_run * 1000:.0f} ms are needed to do anything",
                    phase="admission",
                )
            due = self._staggered(due, latest, arrival)
        return Grant(tenant, granted, due, requested)

    def _staggered(self, due: float, latest: float, arrival: Arrival) -> float:
        at, earliest = arrival.at, max(due * (1 - STAGGER), self._limits.shortest_run)
        together = 1 if arrival.exact is None else TOGETHER
        return self._ends.place(at + due, earliest=at + earliest, latest=at + latest, now=at, together=together) - at


def _least_left(remaining: float, arrival: Arrival) -> float:
    """The least time that the caller's own timer has left, where its deadlines leave `remaining`.

    An exact value that is less than the timeout is that time. Where it is more, the call has waited
    since it was sent, and the rounding of the timeout may hide as much waiting as it shows.
    """
    least = remaining / _stretch(arrival.header("user-agent"))
    return least if arrival.exact is None else max(least, remaining - arrival.late)


def _stretch(user_agent: str) -> float:
    """How much longer the timeout may have become on its way, judged by who encoded it.

    The C core names itself as `grpc-c/`; Go, Java and Node send what they were given.
    """
    return 1.0 if user_agent and "grpc-c/" not in user_agent else C_CORE_STRETCH
