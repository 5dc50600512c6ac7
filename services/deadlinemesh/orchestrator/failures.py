"""Errors of the hops below: which may pass, and which one ends a run."""

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
"""Seconds before this run's deadline. A hop below that reports a spent deadline later than that reports this one."""

TRANSIENT = (UpstreamFailed, Shed, Draining)
"""Errors that another attempt may avoid: it may meet another instance, or a better moment."""

_PRECEDENCE = (ClientCancelled, DeadlineSpent, DeadlineSpentUpstream, Stopped, MeshError)


def is_transient(error: Exception) -> bool:
    """True if another attempt may succeed."""
    return isinstance(error, TRANSIENT) and not isinstance(error, UpstreamRefused)


def first_cause(group: BaseExceptionGroup) -> MeshError:
    """The error that stands for a group of mesh errors: the client's leaving and spent time before others."""
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
