"""The one error tree of the mesh.

Code raises these nouns; `transport.status` alone turns them into gRPC statuses and back. Each error knows its `Cause`, the
reason that travels in `google.rpc.ErrorInfo`, and carries what a reader needs to put things right.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

__all__ = [
    "Cause",
    "ClientCancelled",
    "DeadlineSpent",
    "DeadlineSpentUpstream",
    "Doomed",
    "Draining",
    "InternalFailure",
    "InvalidRequest",
    "MeshError",
    "NoDeadline",
    "NotFound",
    "Shed",
    "Stopped",
    "TooLarge",
    "Unauthenticated",
    "UpstreamFailed",
    "UpstreamRefused",
    "Violation",
    "choices",
    "without_addresses",
]


class Cause(StrEnum):
    """Why work stopped. The names are those of the `Cause` enum in `protos/`, without its prefix."""

    DEADLINE_SPENT = "DEADLINE_SPENT"
    DEADLINE_SPENT_UPSTREAM = "DEADLINE_SPENT_UPSTREAM"
    CLIENT_CANCELLED = "CLIENT_CANCELLED"
    SHED = "SHED"
    DOOMED = "DOOMED"
    DRAINING = "DRAINING"
    UPSTREAM_FAILED = "UPSTREAM_FAILED"
    INTERNAL = "INTERNAL"


class MeshError(Exception):
    """The root. `reason` names the kind of error for machines; `str()` explains it to people.

    `hop` and `phase` say where it happened, where that is known; an error that came over the wire keeps its origin's.
    """

    reason = "INTERNAL"

    def __init__(self, message: str, *, hop: str = "", phase: str = "") -> None:
        super().__init__(message)
        self.hop = hop
        self.phase = phase


class Stopped(MeshError):
    """Work was stopped, or never begun, for one of the causes that the mesh keeps apart."""

    cause = Cause.INTERNAL

    def __init_subclass__(cls) -> None:
        cls.reason = cls.cause.value


class DeadlineSpent(Stopped):
    """The deadline passed here."""

    cause = Cause.DEADLINE_SPENT


class DeadlineSpentUpstream(Stopped):
    """A hop further down reported that the deadline had passed there."""

    cause = Cause.DEADLINE_SPENT_UPSTREAM


class ClientCancelled(Stopped):
    """The caller cancelled or went away."""

    cause = Cause.CLIENT_CANCELLED


class Shed(Stopped):
    """Refused because of load. `retry_after` is in seconds, None where nothing better than 'later' is known."""

    cause = Cause.SHED

    def __init__(self, message: str, *, retry_after: float | None = None, hop: str = "", phase: str = "") -> None:
        super().__init__(message, hop=hop, phase=phase)
        self.retry_after = retry_after


class Doomed(Stopped):
    """Refused because it could not have finished in time."""

    cause = Cause.DOOMED


class Draining(Stopped):
    """The hop finishes what it has and takes nothing new."""

    cause = Cause.DRAINING


class UpstreamFailed(Stopped):
    """A dependency failed for a reason of its own. `retry_after` is in seconds, as the dependency asked; else None."""

    cause = Cause.UPSTREAM_FAILED
    retry_after: float | None = None  # of the class, as a tool's subclass need not call the constructor of this one

    def __init__(self, message: str, *, retry_after: float | None = None, hop: str = "", phase: str = "") -> None:
        super().__init__(message, hop=hop, phase=phase)
        self.retry_after = retry_after


class UpstreamRefused(UpstreamFailed):
    """A dependency refused the request itself: it would refuse it again. To those who need not know, the same cause."""


class InternalFailure(Stopped):
    """A defect of ours, or of a hop that could not say more."""

    cause = Cause.INTERNAL


@dataclass(frozen=True, slots=True)
class Violation:
    """What is wrong with one field, and what would be right."""

    field: str
    description: str


class InvalidRequest(MeshError):
    """The request cannot be served as it is. Holds every violation found, not only the first."""

    reason = "INVALID_REQUEST"

    def __init__(self, violations: Sequence[Violation], *, hop: str = "") -> None:
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in violations), hop=hop)
        self.violations = tuple(violations)


class NotFound(InvalidRequest):
    """A name in the request is unknown. The violations name the valid choices."""

    reason = "NOT_FOUND"


class Unauthenticated(MeshError):
    """The caller did not prove who it is."""

    reason = "UNAUTHENTICATED"


class NoDeadline(MeshError):
    """Work without a deadline was asked of the mesh, which has none."""

    reason = "NO_DEADLINE"


class TooLarge(MeshError):
    """A message exceeds the hop's size limit."""

    reason = "TOO_LARGE"


def choices(names: Iterable[str]) -> str:
    """The valid choices as a sentence's end: `one of a, b, c`, or `none is defined`."""
    listed = ", ".join(names)
    return f"one of {listed}" if listed else "none is defined"


_ADDRESS = re.compile(
    r"\b[a-z][a-z0-9+.-]{0,30}://\S+"  # a URL
    r"|\b(?:ipv4|ipv6|unix|unix-abstract|vsock|dns):\S+"  # as gRPC writes a peer
    r"|\[[0-9a-f:.]{2,45}\](?::\d+)?"
    r"|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?"
    r"|\b[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63}){0,9}:\d{2,5}\b"
    r"|\b(?:sk|pk|key|dm)[-_][\w-]{8,}",  # a key
    re.IGNORECASE,
)


def without_addresses(text: str, most: int = 500) -> str:
    """Words of others as a tenant may read them: without URLs, addresses and keys, and at most so many characters."""
    return _ADDRESS.sub("…", text[: 4 * most])[:most]
