"""Who is next: strict priority between bands with a guard, weighted fairness between tenants, earliest deadline first inside one.

Fairness is in slot-seconds, not in calls: a tenant whose calls are slow has fewer of them. It is start-time fair queueing (Goyal,
Vin and Cheng, SIGCOMM 1996) in which a claim is charged what its tenant's lately took as it begins, and the rest when it ends.
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
"""Seconds in which half of a tenant's recent peak is forgotten."""


@dataclass(frozen=True, slots=True)
class Share:
    """What a tenant's class of service is worth where there is not enough for all."""

    weight: float = 1.0
    """A tenant with twice the weight gets twice the slot-seconds."""
    band: int = 0
    """Lower bands go first."""


class Waiter:
    """One piece of work that wants a slot."""

    def __init__(self, tenant: TenantQueue, deadline_at: float) -> None:
        self.tenant = tenant
        self.deadline_at = deadline_at


@dataclass(eq=False, slots=True)
class TenantQueue:
    """One tenant at one bulkhead."""

    tenant_id: str
    share: Share
    virtual_time: float
    """Slot-seconds used, by weight; who has the least of its band is next."""
    held: int = 0
    """Slots that it has now."""
    holds: RecentTimes = field(default_factory=RecentTimes)
    """How long it held them."""
    kinds: defaultdict[str, Kind] = field(default_factory=lambda: defaultdict(Kind))
    """What its kinds of work took."""
    waiting: list[tuple[float, int, Waiter]] = field(default_factory=list)
    """A heap by deadline."""
    _peak: float = 0.0
    _peak_at: float = 0.0

    def wants_one_more(self, now: float) -> None:
        """A claim comes."""
        self._peak, self._peak_at = max(self.need(now), self.held + len(self.waiting) + 1.0), now

    def need(self, now: float) -> float:
        """Slots that it has lately wanted at once: a peak that fades."""
        faded: float = self._peak * 0.5 ** ((now - self._peak_at) / _HALF_LIFE)
        return max(faded, float(self.held + len(self.waiting)))

    def idle(self, now: float) -> bool:
        """Whether it is not to be reckoned with any more."""
        return self.need(now) < 0.5


class FairQueue:
    """The tenants of one bulkhead and their waiting claims.

    `guard` is the part of all grants that goes to a band that waits behind others.
    """

    def __init__(self, guard: float) -> None:
        self.guard = guard
        self._owed: defaultdict[int, float] = defaultdict(float)
        """Turns that each band behind others has still to get."""
        self._tenants: dict[str, TenantQueue] = {}
        self._number = count()
        self._waiting = 0
        self._held = 0
        self._virtual_now: defaultdict[int, float] = defaultdict(float)
        """Each band's clock: what one band gets says nothing about who of another has had less than its part."""

    def tenant(self, tenant_id: str, share: Share, now: float) -> TenantQueue:
        """The tenant of this name, with this share from now on and one more claim."""
        tenant, virtual_now = self._tenants.get(tenant_id), self._virtual_now[share.band]
        if tenant is None:
            self._forget_idle(now)
            tenant = self._tenants[tenant_id] = TenantQueue(tenant_id, share, virtual_now)
        elif tenant.share.band != share.band:  # as far ahead or behind as it was
            tenant.virtual_time += virtual_now - self._virtual_now[tenant.share.band]
        tenant.share = share
        if tenant.virtual_time < virtual_now and not tenant.held and not tenant.waiting:  # idleness saves nothing up
            tenant.virtual_time = virtual_now
        tenant.wants_one_more(now)
        return tenant

    def active(self, now: float) -> list[TenantQueue]:
        """The tenants that are to be reckoned with."""
        return [tenant for tenant in self._tenants.values() if not tenant.idle(now)]

    def __len__(self) -> int:
        return self._waiting

    def push(self, claim: Waiter) -> None:
        """Let `claim` wait."""
        heapq.heappush(claim.tenant.waiting, (claim.deadline_at, next(self._number), claim))
        self._waiting += 1

    def remove(self, claim: Waiter) -> None:
        """Forget a claim that waits no longer."""
        waiting = claim.tenant.waiting
        before = len(waiting)
        waiting[:] = [entry for entry in waiting if entry[2] is not claim]
        heapq.heapify(waiting)
        self._waiting -= before - len(waiting)

    def let_next_begin(self, may_begin: Callable[[TenantQueue], bool], begins: Callable[[Waiter], bool]) -> bool:
        """Hand the next claim of a tenant that may begin one to `begins`, which tells whether it did; False if there is none."""
        able = [tenant for tenant in self._tenants.values() if tenant.waiting and may_begin(tenant)]
        if not able:
            return False
        bands = sorted({tenant.share.band for tenant in able})
        band = self._band_of_turn(bands)
        in_band = (tenant for tenant in able if tenant.share.band == band)
        tenant = min(in_band, key=lambda tenant: (tenant.virtual_time, tenant.held))
        self._waiting -= 1
        if begins(heapq.heappop(tenant.waiting)[2]):  # a turn that nobody takes is still owed
            self._take_turn(bands, band)
        return True

    def begin(self, tenant: TenantQueue, seconds: float) -> None:
        """A claim of `tenant` begins, and is charged the `seconds` that it is expected to take."""
        band = tenant.share.band
        if tenant.virtual_time > self._virtual_now[band]:
            self._virtual_now[band] = tenant.virtual_time
        tenant.held += 1
        self._held += 1
        tenant.virtual_time += seconds / tenant.share.weight

    def end(self, tenant: TenantQueue, seconds: float, expected: float) -> None:
        """A claim of `tenant` ends, that took `seconds` and was charged what was `expected`."""
        tenant.held -= 1
        self._held -= 1
        tenant.virtual_time += (seconds - expected) / tenant.share.weight
        if not (self._held or self._waiting):  # nobody is behind anybody
            furthest = max(one.virtual_time for one in self._tenants.values())
            for band in self._virtual_now:
                self._virtual_now[band] = furthest

    def _forget_idle(self, now: float) -> None:
        # Not those that have used more than others who may come back: they would begin anew without it.
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
