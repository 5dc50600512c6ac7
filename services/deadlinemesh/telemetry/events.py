"""The events of the mesh, as frozen dataclasses. They know nothing of sinks.

Instants are on the local monotonic clock, in seconds. Durations are in seconds.
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
    """A hop has begun to serve a call. A `CallEnded` follows each of them."""

    hop: str
    method: str
    run_id: str
    started_at: float
    deadline_at: float


@dataclass(frozen=True, slots=True)
class CallEnded:
    """A hop has served a call: its handler and all that it started are gone, or reported as
    orphans.
    """

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
    """The name of the `Cause`; empty if the call was not stopped."""


@dataclass(frozen=True, slots=True)
class CallRefused:
    """A hop has refused a call at its gate. Its handler never began, and its headers are not
    believed.
    """

    hop: str
    method: str
    started_at: float
    ended_at: float
    code: str
    reason: str
    """The reason in the status: SHED, DRAINING, UNAUTHENTICATED and so on."""


@dataclass(frozen=True, slots=True)
class ConnectionClosed:
    """A hop has closed a connection that cost too much."""

    hop: str
    address: str
    """The peer's address, without its port."""
    why: str
    """`calls`: too many without a known credential, or a call that no well-meaning peer sends.
    `connections`: too many of its address. `quiet`: no call for too long.
    """


@dataclass(frozen=True, slots=True)
class OrphanReported:
    """Work still runs `age` seconds after it should have ended: a task, a thread, a process, or the
    sending of a reply that the peer does not read.
    """

    hop: str
    tenant_id: str
    run_id: str
    task: str
    age: float


@dataclass(frozen=True, slots=True)
class LoopLagged:
    """A hop's event loop stood still for `seconds`, and the deadlines of all tenants with it."""

    hop: str
    tenant_id: str
    """The tenant that the loop worked for. Empty, like `run_id`, if it worked for none."""
    run_id: str
    seconds: float
    function: str
    """The place in the code: module, function and line. Empty if the loop had gone on before the
    check.
    """


@dataclass(frozen=True, slots=True)
class MalformedRemaining:
    """A peer sent an invalid `deadline-remaining-us`. It was ignored, and only `grpc-timeout`
    counts.
    """

    hop: str
    method: str
    value: str


@dataclass(frozen=True, slots=True)
class RunEnded:
    """An agent run has ended. `phases` gives the seconds of each phase, `unattributed` the rest."""

    hop: str
    tenant_id: str
    tier: str
    run_id: str
    started_at: float
    due_at: float
    """The run's internal deadline: the client's deadline less the response reserve."""
    ended_at: float
    outcome: str
    cause: str
    phases: dict[str, float]
    unattributed: float


@dataclass(frozen=True, slots=True)
class CacheUsed:
    """A tool call has looked for a stored result."""

    hop: str
    tenant_id: str
    run_id: str
    tool: str
    hit: bool
    """True if the call's result is the stored one. The tool was then not run."""
    seconds: float
    problem: str
    """`slow` if the store took too long and was given up, `failed` if it raised; else empty."""


@dataclass(frozen=True, slots=True)
class CacheWritten:
    """The write of a result to the store is over. It belongs to the tenant and the run that caused
    it.
    """

    hop: str
    tenant_id: str
    run_id: str
    tool: str
    seconds: float
    problem: str
    """`failed` if the store raised, `crowded` if it was left out because too many writes of the
    tenant were in progress, the name of the `Cause` if it was stopped; empty if it succeeded.
    """


@dataclass(frozen=True, slots=True)
class Retried:
    """A failed attempt is tried again, after `backoff` seconds."""

    hop: str
    tenant_id: str
    run_id: str
    upstream: str
    """`tool NAME` or `model NAME`."""
    retry: int
    """The number of this retry, from 1."""
    why: str
    """The name of the `Cause` of the attempt before, or HUNG if that one was silent for
    too long.
    """
    backoff: float


@dataclass(frozen=True, slots=True)
class RetryRefused:
    """A failed attempt is not tried again. An attempt that only seemed to hang goes on."""

    hop: str
    tenant_id: str
    run_id: str
    upstream: str
    retry: int
    why: str
    refused: str
    """`limit` of the tier, `not_idempotent`, no `time`, `retry_after` beyond the deadline, or the
    upstream's `budget`.
    """


@dataclass(frozen=True, slots=True)
class FellBack:
    """A run goes on with another model, because its own model failed before it said anything."""

    hop: str
    tenant_id: str
    run_id: str
    upstream: str
    fallback: str
    why: str
    """As in `Retried`."""


@dataclass(frozen=True, slots=True)
class LimitHit:
    """A tenant has reached a limit: a call was refused, a run ended, or a part of a run
    left out.
    """

    hop: str
    tenant_id: str
    limit: str
    """The limit's name in the policy, such as `calls_per_second`."""


@dataclass(frozen=True, slots=True)
class PolicyInForce:
    """A hop has switched to a policy."""

    hop: str
    digest: str
    """The first 12 hexadecimal digits of the SHA-256 of the policy file."""


@dataclass(frozen=True, slots=True)
class PolicyRefused:
    """A hop cannot use its policy file, and keeps the policy in force."""

    hop: str
    digest: str
    """As in `PolicyInForce`, of the refused file; `unreadable` if it could not be read."""
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
    """Receives events. It must not block: it is called on the event loop, while calls
    are served.
    """

    def record(self, event: Event) -> None:
        """Receive one event."""


class Telemetry:
    """Passes each event to every sink."""

    def __init__(self, sinks: Sequence[Sink] = ()) -> None:
        self._sinks = tuple(sinks)

    def __bool__(self) -> bool:
        """True if there is a sink. Without one, no event need be made."""
        return bool(self._sinks)

    def record(self, event: Event) -> None:
        """Pass one event to every sink."""
        for sink in self._sinks:
            sink.record(event)
