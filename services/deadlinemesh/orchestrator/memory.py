"""Memory that tenants may hold in this process: requests, their runs, and replies being sent."""

from __future__ import annotations

from deadlinemesh.admission import Budget, Held
from deadlinemesh.errors import Shed, TooLarge
from deadlinemesh.identity.callers import Tenant
from deadlinemesh.policy import Policy
from deadlinemesh.telemetry import LimitHit, Telemetry

__all__ = ["COPIES", "RETRY_AFTER", "Memory"]

COPIES = 2
"""Copies of a request or a reply that are held. Of a request: its message and its texts. Of a
reply: its message and its bytes being sent."""

RETRY_AFTER = 0.5
"""Seconds that a refused client should wait. A guess: the end and size of other runs are
unknown."""


class Memory:
    """The memory budget of one hop, by `policy`.

    Each limit that is reached is reported to `telemetry`.
    """

    def __init__(self, policy: Policy, telemetry: Telemetry, hop: str) -> None:
        self._telemetry = telemetry
        self._hop = hop
        self.budget = Budget(policy.admission.memory_bytes, policy.admission.memory_part)
        self.reconfigure(policy)

    def reconfigure(self, policy: Policy) -> None:
        """Use the limits of `policy` from now on. Held bytes stay held."""
        self._message_bytes = policy.limits.message_bytes
        self.budget.resize(policy.admission.memory_bytes, policy.admission.memory_part)

    def request(self, tenant: Tenant, size: int) -> Held:
        """Hold a request of `size` bytes.

        Raises TooLarge if it exceeds the tier's limit or the tenant's share, and Shed if there is
        no room now.
        """
        bounds = {
            "limits.message_bytes": self._message_bytes,
            "the tenant's part of memory_bytes": self.budget.most // COPIES,
        }
        if tenant.tier_policy.request_bytes is not None:
            bounds["request_bytes of the tier"] = tenant.tier_policy.request_bytes
        limit = min(bounds, key=bounds.__getitem__)
        if size > bounds[limit]:
            self.hit(tenant.tenant_id, "request_bytes")
            raise TooLarge(f"the request has {size} bytes; {limit} allows {bounds[limit]}")
        return self.take(tenant.tenant_id, size)

    def take(self, tenant_id: str, size: int) -> Held:
        """Hold `size` bytes. Raises Shed if there is no room now."""
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
        """Report that the tenant reached a limit."""
        self._telemetry.record(LimitHit(self._hop, tenant_id, limit))
