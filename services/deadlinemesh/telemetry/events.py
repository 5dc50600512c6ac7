"""What happened, as frozen events. Where they go is the sinks' affair.

Instants are on the local monotonic clock, in seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from deadlinemesh.admission import Wait

__all__ = [
    "CacheUsed",
    "CacheWritten",
    "CallEnded",
    "CallRefused",
    "CallStarted",
    "ConnectionClosed",
    "Event",
    "FellBack",
    "LimitHit",
    "LoopLagged",
    "MalformedRemaining",
    "OrphanReported",
    "PolicyInForce",
    "PolicyRefused",
    "Retried",
    "RetryRefused",
    "RunEnded",
    "Sink",
    "Telemetry",
]


@dataclass(frozen=True, slots=True)
class CallStarted:
    """A hop has begun to serve a call. Every one is followed by a `CallEnded`."""

    hop: str
    method: str
    run_id: str
    started_at: float
    deadline_at: float


@dataclass(frozen=True, slots=True)
class CallEnded:
    """A hop has served a call: its handler and all that it started are gone, or reported as orphans."""

    hop: str
    method: str
    tenant_id: str
    tier: str
    run_id: str
    started_at: float
    deadline_at: float
    ended_at: float
    code: str
    cause: str
    """The name of the `Cause`; empty when the call was not stopped."""


@dataclass(frozen=True, slots=True)
class CallRefused:
    """A hop has refused a call at its door: nothing of what it says of itself is believed, and its handler never began."""

    hop: str
    method: str
    started_at: float
    ended_at: float
    code: str
    reason: str
    """As in the status: SHED, DRAINING, UNAUTHENTICATED and so on."""


@dataclass(frozen=True, slots=True)
class ConnectionClosed:
    """A hop has closed a connection that cost too much."""

    hop: str
    address: str
    """The peer's, without its port."""
    why: str
    """`calls` without a known credential, too many `connections` of its address, or `quiet` for too long."""


@dataclass(frozen=True, slots=True)
class OrphanReported:
    """Work lives on `age` seconds after it should have ended: a task, a thread, a process, or a reply that nobody reads."""

    hop: str
    tenant_id: str
    run_id: str
    task: str
    age: float


@dataclass(frozen=True, slots=True)
class LoopLagged:
    """A hop's event loop stood still for `seconds`, and with it the deadlines of all tenants."""

    hop: str
    tenant_id: str
    """For whom it was working; empty, as the run, where it was for nobody."""
    run_id: str
    seconds: float
    function: str
    """Where it was found: module, function and line. Empty where it was gone before it could be looked at."""


@dataclass(frozen=True, slots=True)
class MalformedRemaining:
    """A peer sent a `deadline-remaining-us` that is none; `grpc-timeout` was used alone."""

    hop: str
    method: str
    value: str


@dataclass(frozen=True, slots=True)
class RunEnded:
    """An agent run has ended, with the seconds that each phase took."""

    hop: str
    tenant_id: str
    tier: str
    run_id: str
    started_at: float
    due_at: float
    """The run's internal deadline: the client's less the response reserve."""
    ended_at: float
    outcome: str
    cause: str
    phases: dict[str, float]
    unattributed: float


@dataclass(frozen=True, slots=True)
class CacheUsed:
    """A tool call has looked for a kept result."""

    hop: str
    tenant_id: str
    run_id: str
    tool: str
    hit: bool
    """Whether the call's result is the kept one, and the tool was not run."""
    seconds: float
    problem: str
    """`slow` when the store was given up, `failed` when it raised; else empty."""


@dataclass(frozen=True, slots=True)
class CacheWritten:
    """The write of a result to be kept is over. It belongs to the tenant and the run that caused it."""

    hop: str
    tenant_id: str
    run_id: str
    tool: str
    seconds: float
    problem: str
    """`failed` when the store raised, `crowded` when too many of the tenant's were at work and it was left out, the name of
    the `Cause` when it was stopped; empty when it was written."""


@dataclass(frozen=True, slots=True)
class Retried:
    """A failed attempt is tried again."""

    hop: str
    tenant_id: str
    run_id: str
    upstream: str
    """`tool NAME` or `model NAME`."""
    retry: int
    """From 1."""
    why: str
    """The name of the `Cause` of the attempt before, or HUNG when that was silent for too long."""
    backoff: float


@dataclass(frozen=True, slots=True)
class RetryRefused:
    """A failed attempt is not tried again; one that seemed to hang goes on."""

    hop: str
    tenant_id: str
    run_id: str
    upstream: str
    retry: int
    why: str
    refused: str
    """`limit` of the tier, `not_idempotent`, no `time`, `retry_after` beyond the deadline, or the upstream's `budget`."""


@dataclass(frozen=True, slots=True)
class FellBack:
    """A run goes on with another model, as its own failed before it said anything."""

    hop: str
    tenant_id: str
    run_id: str
    upstream: str
    fallback: str
    why: str
    """As in `Retried`."""


@dataclass(frozen=True, slots=True)
class LimitHit:
    """A tenant has come to a limit: a call was refused, a run ended, or a part of one left out."""

    hop: str
    tenant_id: str
    limit: str
    """As policy names it, such as `calls_per_second`."""


@dataclass(frozen=True, slots=True)
class PolicyInForce:
    """A hop has gone over to a policy."""

    hop: str
    digest: str
    """The first 12 hexadecimal digits of the SHA-256 of its file."""


@dataclass(frozen=True, slots=True)
class PolicyRefused:
    """A hop cannot use what its policy file says, and keeps the policy in force."""

    hop: str
    digest: str
    """As in `PolicyInForce`, of what was refused; `unreadable` where that could not be read."""
    why: str


Event = (
    CallStarted
    | CallEnded
    | CallRefused
    | ConnectionClosed
    | OrphanReported
    | LoopLagged
    | MalformedRemaining
    | RunEnded
    | Wait
    | CacheUsed
    | CacheWritten
    | Retried
    | RetryRefused
    | FellBack
    | LimitHit
    | PolicyInForce
    | PolicyRefused
)


class Sink(Protocol):
    """Takes events. It must not block: it is called on the event loop, in the middle of serving."""

    def record(self, event: Event) -> None:
        """Take one event."""


class Telemetry:
    """Hands each event to every sink."""

    def __init__(self, sinks: Sequence[Sink] = ()) -> None:
        self._sinks = tuple(sinks)

    def __bool__(self) -> bool:
        """Whether anybody listens: without, events need not be made."""
        return bool(self._sinks)

    def record(self, event: Event) -> None:
        """Take one event."""
        for sink in self._sinks:
            sink.record(event)
