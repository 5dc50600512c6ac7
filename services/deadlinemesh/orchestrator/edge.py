"""The edge: who is calling, and how much time the call is granted. The only place where budgets are made.

Whatever a caller says of its tenant, tier or run is dropped; only its API key and its deadline count, the tighter of `grpc-timeout`
and `deadline-remaining-us`. Either can only narrow the tier's budget.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from uuid import uuid4

from deadlinemesh.admission import Quota, Quotas
from deadlinemesh.deadline import SYSTEM_CLOCK, Clock, DeadlineContext
from deadlinemesh.errors import Doomed, InvalidRequest, Shed, Unauthenticated, Violation
from deadlinemesh.orchestrator.spreader import DeadlineSpreader, Place
from deadlinemesh.policy import Credentials, GoOver, Policy, Tenant
from deadlinemesh.telemetry import LimitHit, Telemetry
from deadlinemesh.transport import Arrival, wire
from deadlinemesh.vocabulary.hops import ORCHESTRATOR

__all__ = ["EdgeGate", "Grant", "current_grant", "set_grant"]

C_CORE_STRETCH = 1.045
"""A `grpc-timeout` from the C core may be this much longer than the caller's own timer: it is rounded up to three digits and then
one of the last values, up to 3% longer, may be sent instead (seen: 10.0 s arriving as 10.4 s)."""

LARGEST_METADATA = 16 * 1024
"""Bytes of a call's metadata, which are held as long as the call."""

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


BYTES_PER_CALL = 64 * 1024
"""Bytes of a request or a reply that count as one call more: to read and to check them takes about as long."""


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
    charge: Callable[[int], None] = field(default=lambda size: None, compare=False, repr=False)
    """Takes the bytes of a request or a reply: at the edge, large ones count as several calls."""

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

    def __init__(
        self, policy: Policy, clock: Clock = SYSTEM_CLOCK, telemetry: Telemetry | None = None, hop: str = ORCHESTRATOR
    ) -> None:
        self._clock = clock
        self._telemetry = telemetry or Telemetry()
        self._hop = hop
        self._ends = DeadlineSpreader(APART)
        self._calls = Quotas()
        self.prepared(policy)()

    def prepared(self, policy: Policy) -> GoOver:
        """Judge calls to come by `policy`: keys that it has not are refused at once."""
        credentials = Credentials(policy)
        quotas = {
            name: Quota(tier.calls_per_second, tier.burst, tier.concurrent_calls) for name, tier in policy.tiers.items()
        }

        def go_over() -> None:
            self._credentials, self._limits, self._quotas = credentials, policy.limits, quotas

        return go_over

    def __call__(self, arrival: Arrival) -> DeadlineContext:
        tenant = self._authenticated(arrival)
        self._count(tenant, arrival)
        if (size := sum(len(key) + len(value) for key, value in arrival.metadata)) > LARGEST_METADATA:
            raise InvalidRequest([Violation("metadata", f"has {size} bytes, and may have {LARGEST_METADATA}")])
        arrival.by_turns = True
        grant = self._grant(tenant, arrival)
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

    def _count(self, tenant: Tenant, arrival: Arrival) -> None:
        """Raises Shed where the tenant makes calls too fast, or has too many at work; else counts this one until its end."""
        quota = self._quotas[tenant.tier]
        excess = self._calls.begin(tenant.tenant_id, quota, arrival.at)
        if excess is None:
            arrival.on_end = partial(self._ended, tenant.tenant_id, None)
            return
        self._telemetry.record(LimitHit(self._hop, tenant.tenant_id, excess.limit))
        most = quota.concurrent if excess.limit == "concurrent_calls" else quota.per_second
        raise Shed(
            f"this tenant's tier has {excess.limit} {most}, and this call would be more",
            retry_after=excess.retry_after,
            phase="admission",
        )

    def _charge(self, tenant_id: str, size: int) -> None:
        if size >= BYTES_PER_CALL:
            self._calls.charge(tenant_id, size // BYTES_PER_CALL)

    def _ended(self, tenant_id: str, place: Place | None, _: object) -> None:
        self._calls.end(tenant_id)
        if place is not None:  # a run that has ended by now needs it no longer
            self._ends.release(place)

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
            place = self._staggered(due, latest, arrival)
            arrival.on_end = partial(self._ended, tenant.tenant_id, place)
            due = place.at - arrival.at
        return Grant(tenant, granted, due, requested, partial(self._charge, tenant.tenant_id))

    def _staggered(self, due: float, latest: float, arrival: Arrival) -> Place:
        at, earliest = arrival.at, max(due * (1 - STAGGER), self._limits.shortest_run)
        together = 1 if arrival.exact is None else TOGETHER
        return self._ends.place(at + due, earliest=at + earliest, latest=at + latest, now=at, together=together)


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
