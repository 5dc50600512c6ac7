"""The fair queue: by band, then by weighted fairness between tenants, then by deadline.

Bands have strict priority, except for a guard against starvation. Fairness counts slot-seconds, not
calls: a tenant with slow calls gets fewer of them. The algorithm is start-time fair queueing
(Goyal, Vin and Cheng, SIGCOMM 1996). A request is charged its tenant's recent mean time when it
begins, and the difference to its real time when it ends.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

from deadlinemesh.admission.times import Kind, RecentTimes

__all__ = ["FairQueue", "Share", "TenantQueue", "Waiter"]

_HALF_LIFE = 10.0
"""Half-life of a tenant's recent peak, in seconds."""


@dataclass(frozen=True, slots=True)
class Share:
    """The priority of a tenant's class of service while slots are scarce."""

    weight: float = 1.0
    """A tenant with twice the weight gets twice the slot-seconds."""
    band: int = 0
    """Lower bands go first."""


class Waiter:
    """A piece of work that needs a slot."""

    def __init__(self, tenant: TenantQueue, deadline_at: float) -> None:
        self.tenant = tenant
        self.deadline_at = deadline_at


@dataclass(eq=False, slots=True)
class TenantQueue:
    """The waiters and the usage of one tenant at one bulkhead."""

    tenant_id: str
    share: Share
    virtual_time: float
    """Slot-seconds used, divided by the weight. The tenant with the least in its band is next."""
    held: int = 0
    """Slots held now."""
    holds: RecentTimes = field(default_factory=RecentTimes)
    """Recent times for which slots were held."""
    kinds: defaultdict[str, Kind] = field(default_factory=lambda: defaultdict(Kind))
    """Recent times of each kind of work."""
    waiting: list[tuple[float, int, Waiter]] = field(default_factory=list)
    """The waiters: a heap by deadline."""
    _peak: float = 0.0
    _peak_at: float = 0.0

    def wants_one_more(self, now: float) -> None:
        """Note a new request."""
        self._peak, self._peak_at = max(self.need(now), self.held + len(self.waiting) + 1.0), now

    def need(self, now: float) -> float:
        """Slots lately needed at once: a peak that fades."""
        faded: float = self._peak * 0.5 ** ((now - self._peak_at) / _HALF_LIFE)
        return max(faded, float(self.held + len(self.waiting)))

    def idle(self, now: float) -> bool:
        """True if the tenant has not needed a slot lately."""
        return self.need(now) < 0.5


class FairQueue:
    """The tenants of one bulkhead and their waiters.

    `guard` is the fraction of all grants for each band that waits behind another.
    """

    def __init__(self, guard: float) -> None:
        self.guard = guard
        self._owed: defaultdict[int, float] = defaultdict(float)
        """Turns still owed to each band that waited behind another."""
        self._tenants: dict[str, TenantQueue] = {}
        self._number = count()
        self._waiting = 0
        self._held = 0
        self._virtual_now: defaultdict[int, float] = defaultdict(float)
        """The virtual time of each band. It is separate, as the service of one band does not show
        the tenants of another that had too little."""

    def tenant(self, tenant_id: str, share: Share, now: float) -> TenantQueue:
        """Note one more request of the tenant, give it this share from now on, and return it."""
        tenant, virtual_now = self._tenants.get(tenant_id), self._virtual_now[share.band]
        if tenant is None:
            self._forget_idle(now)
            tenant = self._tenants[tenant_id] = TenantQueue(tenant_id, share, virtual_now)
        elif tenant.share.band != share.band:  # it stays as far ahead or behind as before
            tenant.virtual_time += virtual_now - self._virtual_now[tenant.share.band]
        tenant.share = share
        # Idle time gives no credit.
        if tenant.virtual_time < virtual_now and not tenant.held and not tenant.waiting:
            tenant.virtual_time = virtual_now
        tenant.wants_one_more(now)
        return tenant

    def active(self, now: float) -> list[TenantQueue]:
        """The tenants that need slots, or needed some lately."""
        return [tenant for tenant in self._tenants.values() if not tenant.idle(now)]

    def __len__(self) -> int:
        return self._waiting

    def push(self, claim: Waiter) -> None:
        """Add a waiter."""
        heapq.heappush(claim.tenant.waiting, (claim.deadline_at, next(self._number), claim))
        self._waiting += 1

    def remove(self, claim: Waiter) -> None:
        """Remove a waiter that waits no longer. Does nothing if it is not in the queue."""
        waiting = claim.tenant.waiting
        before = len(waiting)
        waiting[:] = [entry for entry in waiting if entry[2] is not claim]
        heapq.heapify(waiting)
        self._waiting -= before - len(waiting)

    def let_next_begin(self, may_begin: Callable[[TenantQueue], bool], begins: Callable[[Waiter], bool]) -> bool:
        """Pass the next waiter to `begins`, among the tenants that `may_begin` accepts.

        `begins` returns False if the waiter did not begin. Returns False if there is no such
        waiter.
        """
        able = [tenant for tenant in self._tenants.values() if tenant.waiting and may_begin(tenant)]
        if not able:
            return False
        bands = sorted({tenant.share.band for tenant in able})
        band = self._band_of_turn(bands)
        in_band = (tenant for tenant in able if tenant.share.band == band)
        tenant = min(in_band, key=lambda tenant: (tenant.virtual_time, tenant.held))
        self._waiting -= 1
        if begins(heapq.heappop(tenant.waiting)[2]):  # an unused turn is still owed
            self._take_turn(bands, band)
        return True

    def begin(self, tenant: TenantQueue, seconds: float) -> None:
        """Note that a request of `tenant` begins. It is charged its expected time, in `seconds`."""
        band = tenant.share.band
        if tenant.virtual_time > self._virtual_now[band]:
            self._virtual_now[band] = tenant.virtual_time
        tenant.held += 1
        self._held += 1
        tenant.virtual_time += seconds / tenant.share.weight

    def end(self, tenant: TenantQueue, seconds: float, expected: float) -> None:
        """Note that a request of `tenant` ends. It took `seconds` and was charged `expected`."""
        tenant.held -= 1
        self._held -= 1
        tenant.virtual_time += (seconds - expected) / tenant.share.weight
        if not (self._held or self._waiting):  # no tenant is behind another
            furthest = max(one.virtual_time for one in self._tenants.values())
            for band in self._virtual_now:
                self._virtual_now[band] = furthest

    def _forget_idle(self, now: float) -> None:
        # Keep tenants that have used more than others. If forgotten, they would begin anew without
        # that debt.
        for tenant in tuple(self._tenants.values()):
            if tenant.idle(now) and tenant.virtual_time <= self._virtual_now[tenant.share.band]:
                del self._tenants[tenant.tenant_id]

    def _band_of_turn(self, bands: Sequence[int]) -> int:
        first, *behind = bands
        return max((band for band in behind if self._owed[band] + self.guard >= 1.0 - 1e-9), default=first)

    def _take_turn(self, bands: Sequence[int], chosen: int) -> None:
        first, *behind = bands
        for band in behind:
            self._owed[band] += self.guard
        if chosen != first:
            self._owed[chosen] -= 1.0
