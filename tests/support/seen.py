"""What a client saw of its call, and what must be true of that whoever looks: in simulated worlds and in real ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import grpc

from deadlinemesh.errors import Stopped
from deadlinemesh.transport import error_from
from deadlinemesh.v1 import orchestrator_pb2

__all__ = ["MICROSECONDS", "Heard", "Seen", "cause_of", "ledger_violations"]

MICROSECONDS = 20
"""By which a sum of durations may differ that were each rounded to a microsecond."""

_EXPLANATION = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class Heard:
    """A response and the instant at which the client had it."""

    at: float
    response: orchestrator_pb2.RunResponse


@dataclass(frozen=True, slots=True)
class Seen:
    """What one client saw of its call. Instants are those of the clock that the world has."""

    run: int
    joins: bool
    """Whether it attached to what another had started."""
    probe: bool
    """Whether it came when all others were gone."""
    sent_at: float
    timer_at: float | None
    left_at: float | None
    heard: tuple[Heard, ...]
    ended_at: float | None
    """None if it still waits."""
    code: str
    cause: str
    """The reason in the status; empty where the status is OK, or nobody explained it."""

    @property
    def run_id(self) -> str:
        """The run's name, as the client was told."""
        return next((one.response.started.run_id for one in self.heard if one.response.HasField("started")), "")

    @property
    def finished(self) -> orchestrator_pb2.RunFinished | None:
        """The run's end, as the client was told."""
        return next((one.response.finished for one in self.heard if one.response.HasField("finished")), None)


def cause_of(error: grpc.aio.AioRpcError) -> str:
    """The reason that the mesh gave; empty where it gave none, as when the client's own timer ended the call."""
    if not any(key == _EXPLANATION for key, _ in error.trailing_metadata() or ()):
        return ""
    told = error_from(error, "the orchestrator")
    return told.cause.value if isinstance(told, Stopped) else told.reason


def ledger_violations(seen: Seen, *, noise: float = 0.0) -> Iterator[str]:
    """The phases divide a run's time without overlap, what they do not explain is said, and nothing exceeds the grant.

    `noise` is for how many microseconds the machine may have had the process wait for a processor between two phases.
    """
    for heard in seen.heard:
        told = heard.response.phase_changed
        so_far = sum(phase.spent_us for phase in told.spent)
        if so_far > heard.response.elapsed_us + MICROSECONDS:
            yield f"run {seen.run} had spent {so_far} us on its phases after {heard.response.elapsed_us} us"
    if seen.finished is None:
        return
    ledger = seen.finished.ledger
    spent = [phase.spent_us for phase in ledger.phases]
    if abs(sum(spent) + ledger.unattributed_us - ledger.elapsed_us) > MICROSECONDS:
        yield f"run {seen.run} spent {sum(spent)} us, {ledger.unattributed_us} more, and {ledger.elapsed_us} in all"
    if (
        min(spent, default=0) < 0
        or not -MICROSECONDS <= ledger.unattributed_us <= 0.02 * ledger.elapsed_us + MICROSECONDS + noise
    ):
        yield f"run {seen.run} cannot explain {ledger.unattributed_us} us of {ledger.elapsed_us}"
    if ledger.elapsed_us > ledger.granted_us + noise:
        yield f"run {seen.run} took {ledger.elapsed_us} us of the {ledger.granted_us} that it was granted"
