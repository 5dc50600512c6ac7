"""The edge authenticates a call and grants its time. Budgets are made nowhere else.

Of a caller's metadata only the API key and the deadline count. A tenant, tier or run in it is
dropped. The deadline is the tighter of `grpc-timeout` and `deadline-remaining-us`. Both can only
narrow the tier's budget.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from uuid import uuid4

from deadlinemesh.admission import Quota, Quotas
from deadlinemesh.deadline import SYSTEM_CLOCK, Clock, DeadlineContext
from deadlinemesh.errors import Doomed, InvalidRequest, Shed, Violation
from deadlinemesh.identity.callers import ApiKeys, Authenticator, Tenant
from deadlinemesh.identity.grants import Grant
from deadlinemesh.orchestrator.spreader import DeadlineSpreader, Place
from deadlinemesh.policy import GoOver, Policy
from deadlinemesh.telemetry import LimitHit, Telemetry
from deadlinemesh.transport import Admitted, Arrival, wire
from deadlinemesh.vocabulary.hops import ORCHESTRATOR

__all__ = ["EdgeGate"]

C_CORE_STRETCH = 1.045
"""Factor by which a `grpc-timeout` from the C core may exceed the caller's own timer. The C core
rounds it up to three digits, and may then send one of its last values instead, up to 3% longer
(seen: 10.0 s arriving as 10.4 s)."""

LARGEST_METADATA = 16 * 1024
"""Bytes of a call's metadata. They are held as long as the call."""

APART = 0.002
"""Seconds between the ends of two runs, as long as there is room. About twice the time in which an
orchestrator ends one."""

STAGGER = 0.02
"""Share of its time that a run may lose for APART. Mostly clients with the C core need it: of their
calls made within a few hundredths of a second, dozens arrive with the same deadline."""

EXACT_HELD = 0.9
"""Share of the response reserve that is held back from an exact deadline. The rest covers the time
that the deadline loses until it is read here. From the client's view the whole reserve is held
back."""

LEAST_HELD = 0.5
"""Least share of the reserve that is held back from an exact deadline, if the run ends later to be
apart from others. Ended together with them it would be as late."""

TOGETHER = 4
"""Runs with exact deadlines that may end in the same APART before the next one has to give STAGGER.
An orchestrator can end so many within the reserve: about a hundred in 0.1 s."""


BYTES_PER_CALL = 64 * 1024
"""Bytes of a request or a reply that count as one more call. To read and check them takes about as
long as a call."""


class EdgeGate:
    """The gate for clients. It authenticates a call by its API key, and grants its time.

    The granted deadline is the earlier of the caller's deadline and the end of its tier's budget.
    Raises Unauthenticated, Shed, InvalidRequest and Doomed.
    """

    def __init__(
        self,
        policy: Policy,
        clock: Clock = SYSTEM_CLOCK,
        telemetry: Telemetry | None = None,
        hop: str = ORCHESTRATOR,
        authenticator: Callable[[Policy], Authenticator] = ApiKeys,
    ) -> None:
        """`authenticator` makes the authenticator of a policy."""
        self._authenticator_of = authenticator
        self._clock = clock
        self._telemetry = telemetry or Telemetry()
        self._hop = hop
        self._ends = DeadlineSpreader(APART)
        self._calls = Quotas()
        self.prepared(policy)()

    def prepared(self, policy: Policy) -> GoOver:
        """Prepare `policy` for later calls. Once it is in force, keys that it lacks are refused."""
        authenticator = self._authenticator_of(policy)
        quotas = {
            name: Quota(tier.calls_per_second, tier.burst, tier.concurrent_calls) for name, tier in policy.tiers.items()
        }

        def go_over() -> None:
            self._authenticator, self._limits, self._quotas = authenticator, policy.limits, quotas

        return go_over

    def __call__(self, arrival: Arrival) -> Admitted:
        tenant = self._authenticator.authenticate(arrival)
        self._count(tenant, arrival)
        if (size := sum(len(key) + len(value) for key, value in arrival.metadata)) > LARGEST_METADATA:
            raise InvalidRequest([Violation("metadata", f"has {size} bytes, and may have {LARGEST_METADATA}")])
        arrival.by_turns = True
        grant = self._grant(tenant, arrival)
        context = DeadlineContext(
            tenant_id=grant.tenant.tenant_id,
            absolute_deadline=arrival.at + grant.granted,
            tier=grant.tenant.tier,
            trace_id=wire.trace_id_of(arrival.header(wire.TRACEPARENT)) or wire.new_trace_id(),
            run_id=f"run_{uuid4().hex[:20]}",
            started_at=arrival.at,
            clock=self._clock,
        )
        return Admitted(context, grant)

    def _count(self, tenant: Tenant, arrival: Arrival) -> None:
        """Count the call until its end.

        Raises Shed if the tenant makes calls too fast, or has too many at work.
        """
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
        if place is not None:  # the run has ended and needs it no longer
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
    """The least time that the caller's own timer may have left, in seconds.

    `remaining` are the seconds that its deadlines leave.

    If the exact value is less than the timeout, it is that time. If it is more, the call has waited
    since it was sent. The rounding of the timeout may then hide as much waiting as it shows.
    """
    least = remaining / _stretch(arrival.header("user-agent"))
    return least if arrival.exact is None else max(least, remaining - arrival.late)


def _stretch(user_agent: str) -> float:
    """The factor by which the timeout may have grown on its way, by the gRPC library of the caller.

    The user agent of the C core has `grpc-c/`. Go, Java and Node send the timeout that they were
    given.
    """
    return 1.0 if user_agent and "grpc-c/" not in user_agent else C_CORE_STRETCH
