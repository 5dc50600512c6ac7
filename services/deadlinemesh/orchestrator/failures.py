"""Errors of the hops below: the transient ones, and the one that ends a run."""

from __future__ import annotations

from deadlinemesh.deadline import current
from deadlinemesh.errors import (
    ClientCancelled,
    DeadlineSpent,
    DeadlineSpentUpstream,
    Draining,
    MeshError,
    Shed,
    Stopped,
    UpstreamFailed,
    UpstreamRefused,
)

__all__ = ["EXPIRES_WITH", "TRANSIENT", "first_cause", "is_transient"]

EXPIRES_WITH = 0.05
"""Seconds before the run's deadline. A spent deadline that a hop below reports later is the run's
own."""

TRANSIENT = (UpstreamFailed, Shed, Draining)
"""Errors that another attempt may avoid: it may reach another instance, or a better moment."""

_PRECEDENCE = (ClientCancelled, DeadlineSpent, DeadlineSpentUpstream, Stopped, MeshError)


def is_transient(error: Exception) -> bool:
    """True if another attempt may succeed."""
    return isinstance(error, TRANSIENT) and not isinstance(error, UpstreamRefused)


def first_cause(group: BaseExceptionGroup) -> MeshError:
    """The error that represents a group of mesh errors.

    ClientCancelled comes first, then spent deadlines, then other Stopped errors.
    """
    errors: list[MeshError] = []
    pending: list[BaseException] = [group]
    while pending:
        error = pending.pop()
        if isinstance(error, BaseExceptionGroup):
            pending.extend(error.exceptions)
        elif isinstance(error, MeshError):
            errors.append(error)
    first = next(error for kind in _PRECEDENCE for error in errors if isinstance(error, kind))
    if isinstance(first, DeadlineSpentUpstream) and current().remaining <= EXPIRES_WITH:
        return DeadlineSpent(str(first), hop=first.hop)
    return first
