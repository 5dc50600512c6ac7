"""A fixed number of slots, shared fairly among tenants.

A tenant may always use its fair part of the slots. It may borrow more while enough slots stay free:
as many as the other tenants have lately needed, but at least one for the next tenant. So the slow
calls of one tenant never hold all slots.

A request that could not become useful in time is refused at once. It is *doomed* if nearly all work
of its kind took longer than its remaining time. It is *shed* if the load is the reason. The error
then says when to try again.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import Context
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Self

from deadlinemesh.admission.loop_catch_up import LoopCatchUp
from deadlinemesh.admission.queue import FairQueue, Share, TenantQueue, Waiter
from deadlinemesh.admission.times import Kind
from deadlinemesh.deadline import SYSTEM_CLOCK, Clock, DeadlineContext, current
from deadlinemesh.deadline.lowlevel import REPORT_ORPHAN_AFTER
from deadlinemesh.errors import ClientCancelled, DeadlineSpent, DeadlineSpentUpstream, Doomed, Draining, Shed, Stopped

__all__ = ["Bulkhead", "Lease", "Wait", "WaitEnd"]

_LOG = logging.getLogger("deadlinemesh.admission")

MAX_WAIT_SHARE = 0.8
"""Fraction of its remaining time that a request may spend until it is useful, waiting included. A
longer wait is not begun."""

LEASE_CHECK_S = 0.25
"""Seconds between two looks for expired leases and faded needs, while requests wait or are shed."""

SOON = 0.05
"""Seconds of `retry_after` if no better value is known."""

_CUT = (asyncio.CancelledError, DeadlineSpent, DeadlineSpentUpstream, ClientCancelled, Draining)
"""Errors that cut work short. Any other error is a failure and says nothing about the duration."""

_ONE = Share()
_LONGER = "the wait took longer than expected"


class WaitEnd(StrEnum):
    """The end of a wait."""

    GRANTED = "granted"
    SHED = "shed"
    DOOMED = "doomed"
    LEFT = "left"
    """The waiter was cancelled, or its deadline passed."""


@dataclass(frozen=True, slots=True)
class Wait:
    """The result of one request for a slot, and the seconds that it waited."""

    bulkhead: str
    tenant_id: str
    tier: str
    run_id: str
    seconds: float
    end: WaitEnd


class Lease(Waiter):
    """A slot, held until its `with` block is left.

    The bulkhead takes a lost lease back, REPORT_ORPHAN_AFTER its deadline.
    """

    def __init__(
        self, owner: Bulkhead, tenant: TenantQueue, kind: Kind, context: DeadlineContext, asked_at: float
    ) -> None:
        super().__init__(tenant, context.absolute_deadline)
        self.waited = 0.0
        """Seconds from the request to the slot."""
        self._owner = owner
        self._kind = kind
        self._context = context
        self._asked_at = asked_at
        self._began_at = 0.0
        self._expected = 0.0
        self._of_use = False
        self._is_probe = False
        """True if this is a probe: let through although the known times say that it is too late."""
        self._turned = False
        """True once the event loop has turned after the start of the work."""
        self._granted: asyncio.Future[None] | None = None

    def useful(self) -> None:
        """Note that the work is useful from now on, even if it is cut later.

        Without this call, work is useful when its block ends without an error.
        """
        if not self._of_use:
            self._of_use = True
            self._kind.useful(self._owner._now() - self._began_at)

    def release(self) -> None:
        """Give the slot back. A second call does nothing."""
        self._owner._end(self)

    def _need(self) -> float:
        return 0.0 if self._is_probe else self._kind.need()

    def _turn(self) -> None:
        self._turned = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.useful()
        elif issubclass(kind, _CUT) and not self._of_use:
            self._kind.cut(self._owner._now() - self._began_at)
        self.release()

    def __repr__(self) -> str:
        return f"<Lease {self._owner.name} tenant={self.tenant.tenant_id} run={self._context.run_id}>"


class Bulkhead:
    """At most `limit` slots held at once.

    `shares` has a share for each tier; other tiers get a default `Share`. `guard` is the fraction
    of grants for each waiting band behind the first. `most_waiting` bounds the waiters of each
    tenant. `on_wait` is called with the result of each request, even if it did not wait.
    """

    def __init__(
        self,
        name: str,
        limit: int,
        *,
        shares: Mapping[str, Share] | None = None,
        guard: float = 0.1,
        most_waiting: int = 256,
        clock: Clock = SYSTEM_CLOCK,
        on_wait: Callable[[Wait], None] | None = None,
        told: str = "",
    ) -> None:
        """`told` replaces `name` in errors, if tenants must not see the name."""
        self.name = name
        self._told = told or name
        self._clock = clock
        self._on_wait = on_wait
        self._queue = FairQueue(guard)
        self._leases: set[Lease] = set()
        self._catch_up = LoopCatchUp(self._grant)
        self._looking: asyncio.TimerHandle | None = None
        self.resize(limit, shares=shares, guard=guard, most_waiting=most_waiting)

    def resize(
        self, limit: int, *, shares: Mapping[str, Share] | None = None, guard: float = 0.1, most_waiting: int = 256
    ) -> None:
        """Set new bounds. Held slots stay held, even above a smaller limit, and waiters wait on.

        Raises ValueError for invalid bounds.
        """
        if limit < 1 or most_waiting < 0 or not 0 <= guard < 1:
            raise ValueError(
                f"{self.name}: the limit must be positive, the line not negative, the guard from 0 to below 1"
            )
        self.limit = limit
        self._shares = shares or {}
        self._most_waiting = most_waiting
        self._queue.guard = guard
        self._grant()

    @property
    def held(self) -> int:
        """Slots held now."""
        return len(self._leases)

    @property
    def waiting(self) -> int:
        """Requests that wait now."""
        return len(self._queue)

    @asynccontextmanager
    async def slot(self, kind: str = "") -> AsyncIterator[Lease]:
        """Hold a slot for the block. See `acquire`."""
        with await self.acquire(kind) as lease:
            yield lease

    async def acquire(self, kind: str = "") -> Lease:
        """Wait for a slot, within the current context's time. Use the lease with `with`.

        Pieces of work of one `kind` are expected to take about the same time. Raises Doomed or Shed
        if the work could not be useful in time, and NoDeadline if no context is current. A
        cancelled waiter leaves the queue and holds no slot.
        """
        context = current()
        asked_at = self._now()
        self._catch_up.claim()
        tenant = self._queue.tenant(context.tenant_id, self._shares.get(context.tier, _ONE), asked_at)
        lease = Lease(self, tenant, tenant.kinds[kind], context, asked_at)
        try:
            self._refuse_doomed(lease)
            if not (tenant.waiting or self._catch_up.taken) and self._may_begin(tenant):
                self._begin(lease)
            else:
                await self._wait(lease)
        except asyncio.CancelledError:
            self._tell(lease, WaitEnd.LEFT)
            raise
        except Stopped as refused:
            self._tell(lease, WaitEnd.DOOMED if isinstance(refused, Doomed) else WaitEnd.SHED)
            raise
        self._tell(lease, WaitEnd.GRANTED)
        return lease

    def _refuse_doomed(self, lease: Lease) -> None:
        need, left = lease._kind.need(), lease.deadline_at - lease._asked_at
        lease._is_probe = left < need and lease._kind.probe_due(left, lease._asked_at)
        if left < need and not lease._is_probe:
            raise Doomed(
                f"{left * 1000:.0f} ms are left for {self._told}, and nine in ten of what it lately did for this tenant "
                f"took more than {need * 1000:.0f} ms"
            )

    async def _wait(self, lease: Lease) -> None:
        self._keep_looking()  # even if no request gets to wait: all may be refused for a long wait
        waiting = lease.tenant.waiting
        expected = self._expected_wait(lease)
        excess = expected + lease._need() - MAX_WAIT_SHARE * (lease.deadline_at - lease._asked_at)
        if len(waiting) >= self._most_waiting and not self._catch_up.taken:
            raise self._shed(f"{len(waiting)} claims of this tenant wait already", max(expected, SOON))
        if expected and excess > 0:
            raise self._shed(f"there is a wait of about {expected * 1000:.0f} ms", max(excess, SOON))
        lease._granted = asyncio.get_running_loop().create_future()
        self._queue.push(lease)
        try:
            await lease._granted
        except asyncio.CancelledError:
            if lease._granted.cancelled():
                self._queue.remove(lease)
            elif lease._granted.exception() is None:  # granted just before the cancel
                self._end(lease, learn=False)
            raise
        if self._too_late(lease):  # the event loop was busy between the grant and this
            self._end(lease, learn=False)
            raise self._shed(_LONGER, SOON)

    def _shed(self, why: str, retry_after: float) -> Shed:
        return Shed(f"{self._told} has no slot in time: {why}", retry_after=retry_after)

    def _expected_wait(self, lease: Lease) -> float:
        """Seconds until the request begins, by the tenant's own times; 0 if these are not known.

        The waiters ahead begin first. The next slot to become free is half way through its work, on
        average.
        """
        tenant = lease.tenant
        if not tenant.held and not tenant.waiting:
            return 0.0  # others hold the slots: its own times say nothing about theirs
        ahead = sum(1 for entry in tenant.waiting if entry[0] <= lease.deadline_at)
        slots = max(tenant.held, self._fair_parts(self._queue.active(lease._asked_at))[tenant])
        return (ahead + 0.5) * tenant.holds.mean / slots

    def _begin(self, lease: Lease) -> None:
        now = self._now()
        lease._began_at, lease._kind.seen_at, lease._expected = now, now, lease.tenant.holds.mean
        lease.waited = now - lease._asked_at
        if lease._is_probe:
            lease._kind.take_probe()
        self._queue.begin(lease.tenant, lease._expected)
        self._leases.add(lease)
        asyncio.get_running_loop().call_soon(lease._turn)

    def _end(self, lease: Lease, *, learn: bool = True) -> None:
        if lease not in self._leases:
            return
        self._leases.discard(lease)
        now = self._now()
        took = now - lease._began_at
        self._queue.end(lease.tenant, took, lease._expected)
        if learn:
            lease.tenant.holds.add(took)
            lease._kind.seen_at = now
        if not lease._turned:
            self._catch_up.held_up(took)
        self._grant()

    def _grant(self) -> None:
        """Give the free slots to the next waiters."""
        while len(self._queue) and self.held < self.limit and not self._catch_up.taken:
            if not self._queue.let_next_begin(self._able(), self._begins):
                return

    def _begins(self, lease: Waiter) -> bool:
        assert isinstance(lease, Lease)
        granted = lease._granted
        assert granted is not None
        if granted.done():  # it has been cancelled
            return False
        if lease._is_probe:  # another probe may have begun, or the time left may be too short by now
            now = self._now()
            lease._is_probe = lease._kind.probe_due(lease.deadline_at - now, now)
        if self._too_late(lease):
            granted.set_exception(self._shed(_LONGER, SOON))
            return False
        self._begin(lease)
        granted.set_result(None)
        return True

    def _too_late(self, lease: Lease) -> bool:
        left = lease.deadline_at - self._now()
        return left <= 0 or left < lease._need()

    def _may_begin(self, tenant: TenantQueue) -> bool:
        """True if the tenant may have one more slot now, as by `_able`.

        The fair part is at least one slot, so a first slot does not depend on other tenants.
        """
        return self._able()(tenant) if tenant.held else self.held < self.limit

    def _able(self) -> Callable[[TenantQueue], bool]:
        """Make a test for tenants: True if the tenant may have one more slot now.

        1. Below its fair part, a tenant may have any free slot.
        2. Else it may borrow a slot if enough others stay free. Enough are the slots that
           the other tenants lately needed of their fair parts, up to half of the limit. It is
           at least one slot, unless the limit is 1.
        """
        now, free = self._now(), self.limit - self.held
        active = self._queue.active(now)
        fair = self._fair_parts(active)
        kept = {one: max(0, min(math.ceil(one.need(now) - 0.5), fair[one]) - one.held) for one in active}
        all_kept = sum(kept.values())
        newcomer = 1 if self.limit > 1 else 0

        def able(tenant: TenantQueue) -> bool:
            if tenant.held < fair[tenant]:
                return free > 0
            return free > max(newcomer, min(all_kept - kept[tenant], self.limit // 2))

        return able

    def _fair_parts(self, active: Sequence[TenantQueue]) -> dict[TenantQueue, int]:
        """The fair part of each tenant, in slots. A lone tenant gets half: another may come."""
        weights = sum(one.share.weight for one in active) * (2 if len(active) == 1 else 1)
        return {one: max(1, int(self.limit * one.share.weight / weights + 1e-9)) for one in active}

    def _keep_looking(self) -> None:
        if self._looking is None:
            # An empty context: a copy of one call's context would be passed on from look to look.
            self._looking = asyncio.get_running_loop().call_later(LEASE_CHECK_S, self._look, context=Context())

    def _look(self) -> None:
        self._looking = None
        lost_before = self._now() - REPORT_ORPHAN_AFTER
        for lease in [one for one in self._leases if one.deadline_at < lost_before]:
            _LOG.warning("took back a slot whose holder is past its deadline: %r", lease)
            lease.release()
        self._grant()
        if len(self._queue):
            self._keep_looking()

    def _tell(self, lease: Lease, end: WaitEnd) -> None:
        if self._on_wait is not None:
            seconds = lease.waited if end is WaitEnd.GRANTED else self._now() - lease._asked_at
            owner = lease._context
            self._on_wait(Wait(self.name, owner.tenant_id, owner.tier, owner.run_id, seconds, end))

    def _now(self) -> float:
        return self._clock.monotonic()
