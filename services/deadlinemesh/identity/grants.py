"""The edge's decision on one call, and its form between the edge and an orchestrator.

The grant travels as durations, like all times in the mesh. The deadline is the call's own. The
grant tells the call's arrival at the edge, as a time before the deadline. A run's time counts from
that arrival, so the way from the edge is part of its admission.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from deadlinemesh.errors import InvalidRequest, Violation
from deadlinemesh.identity.callers import Tenant

__all__ = ["MESH_GRANT", "Grant", "decode_grant", "encode_grant"]

MESH_GRANT = "mesh-grant"
"""Metadata key of the edge's grant: `granted=US;due=US;requested=US`, in microseconds from the
arrival at the edge. `requested` is empty if the client set no deadline."""

_MESH_GRANT = re.compile(r"granted=([0-9]{1,16});due=([0-9]{1,16});requested=([0-9]{1,16})?")


@dataclass(frozen=True, slots=True)
class Grant:
    """The edge's decision on one call. Durations are in seconds from the call's arrival."""

    tenant: Tenant
    granted: float
    """Seconds until the deadline."""
    due: float
    """Seconds until the answer must be on its way: the deadline less the response reserve."""
    requested: float | None
    """Seconds left of the caller's deadline. None without one."""
    charge: Callable[[int], None] = field(default=lambda size: None, compare=False, repr=False)
    """Charges the bytes of a request or a reply. At the edge, large ones count as several calls."""

    @property
    def reserve(self) -> float:
        """Seconds held back so that the answer reaches the caller before its own timer fires."""
        return self.granted - self.due

    @property
    def clipped(self) -> bool:
        """True if the caller asked for more time than its tier allows."""
        return self.requested is not None and self.requested > self.granted


def encode_grant(grant: Grant) -> tuple[str, str]:
    """The metadata entry for `grant`. Times are rounded down."""
    requested = "" if grant.requested is None else _microseconds(grant.requested)
    return MESH_GRANT, f"granted={_microseconds(grant.granted)};due={_microseconds(grant.due)};requested={requested}"


def _microseconds(seconds: float) -> int:
    # A client's timeout may have more digits than the header allows.
    return int(min(max(0.0, seconds) * 1_000_000, 10**16 - 1))


def decode_grant(value: str, tenant: Tenant) -> Grant:
    """The grant in a header's value. Raises InvalidRequest."""
    match = _MESH_GRANT.fullmatch(value)
    if match is None or int(match[2]) > int(match[1]):
        raise InvalidRequest(
            [Violation(MESH_GRANT, "must be granted=US;due=US;requested=US, due within what is granted")]
        )
    granted, due, requested = (int(part) / 1_000_000 for part in match.groups("0"))
    return Grant(tenant, granted, due, None if match[3] is None else requested)
