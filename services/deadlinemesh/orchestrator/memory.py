"""What tenants may hold of this process's memory: their requests, the runs that come of them, and replies on their way."""

from __future__ import annotations

from deadlinemesh.admission import Budget, Held
from deadlinemesh.errors import Shed, TooLarge
from deadlinemesh.policy import Policy, Tenant
from deadlinemesh.telemetry import LimitHit, Telemetry

__all__ = ["COPIES", "RETRY_AFTER", "Memory"]

COPIES = 2
"""So many times the bytes of a request, or of a reply, are held: as they came and as texts, or as a message and on their way."""

RETRY_AFTER = 0.5
"""Seconds after which to come again: when a run ends, and how large it is, is not known."""


class Memory:
    """The budget of one hop, by `policy`. Each limit that is hit is told to `telemetry`."""

    def __init__(self, policy: Policy, telemetry: Telemetry, hop: str) -> None:
        self._telemetry = telemetry
        self._hop = hop
        self.budget = Budget(policy.admission.memory_bytes, policy.admission.memory_part)
        self.use(policy)

    def use(self, policy: Policy) -> None:
        """Judge claims to come by `policy`."""
        self._message_bytes = policy.limits.message_bytes
        self.budget.resize(policy.admission.memory_bytes, policy.admission.memory_part)

    def request(self, tenant: Tenant, size: int) -> Held:
        """Hold a request of `size` bytes. Raises TooLarge for one that the tier may not send, Shed where there is no room now."""
        most = min(tenant.tier_policy.request_bytes or self._message_bytes, self.budget.most // COPIES)
        if size > most:
            self.hit(tenant.tenant_id, "request_bytes")
            raise TooLarge(f"the request has {size} bytes, and request_bytes of this tenant's tier are {most}")
        return self.take(tenant.tenant_id, size)

    def take(self, tenant_id: str, size: int) -> Held:
        """Hold `size` bytes. Raises Shed where there is no room now."""
        held = self.budget.take(tenant_id, size)
        if held is None:
            self.hit(tenant_id, "memory_bytes")
            raise Shed(
                f"{size} bytes more do not fit: this tenant holds {self.budget.held_by(tenant_id)} of at most "
                f"{self.budget.most}, and memory_bytes are {self.budget.total} for all",
                retry_after=RETRY_AFTER,
                phase="admission",
            )
        return held

    def hit(self, tenant_id: str, limit: str) -> None:
        """Tell that the tenant has come to a limit."""
        self._telemetry.record(LimitHit(self._hop, tenant_id, limit))
