"""The deadline context: the tenant, the deadline and the names of one run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from deadlinemesh.deadline.clock import SYSTEM_CLOCK, Clock
from deadlinemesh.errors import NoDeadline

if TYPE_CHECKING:
    from deadlinemesh.deadline.scope import Scope

__all__ = ["DeadlineContext", "current", "current_or_none", "entered"]


@dataclass(frozen=True, slots=True, init=False)
class DeadlineContext:
    """The tenant, the deadline and the names that travel with one run. Immutable.

        now = SYSTEM_CLOCK.monotonic()
        context = DeadlineContext("acme", now + 30.0, "free", trace_id, run_id, started_at=now)
        context.tightened_after(2.0).remaining  # 2.0

    A deadline is never extended. `tightened_to` and `tightened_after` return narrower copies.
    Another budget needs a new grant, and only the edge grants.
    """

    tenant_id: str
    absolute_deadline: float
    """The deadline: an instant on `clock`. All work must have ended by then."""
    tier: str
    trace_id: str
    """W3C trace id: 32 hexadecimal digits."""
    run_id: str
    started_at: float
    """The start of this hop's work, or of the background work: an instant on `clock`."""
    clock: Clock = field(default=SYSTEM_CLOCK, repr=False, compare=False)

    def __init__(
        self,
        tenant_id: str,
        absolute_deadline: float,
        tier: str,
        trace_id: str,
        run_id: str,
        started_at: float,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        # The generated __init__ takes twice as long, and every call makes a context.
        set_tenant_id, set_deadline, set_tier, set_trace_id, set_run_id, set_started_at, set_clock = _SETTERS
        set_tenant_id(self, tenant_id)
        set_deadline(self, absolute_deadline)
        set_tier(self, tier)
        set_trace_id(self, trace_id)
        set_run_id(self, run_id)
        set_started_at(self, started_at)
        set_clock(self, clock)

    @property
    def remaining(self) -> float:
        """Seconds until the deadline, never negative."""
        return max(0.0, self.absolute_deadline - self.clock.monotonic())

    @property
    def is_expired(self) -> bool:
        """True if the deadline has passed."""
        return self.clock.monotonic() >= self.absolute_deadline

    @property
    def granted(self) -> float:
        """Seconds from the start on this hop to the deadline."""
        return self.absolute_deadline - self.started_at

    @property
    def elapsed(self) -> float:
        """Seconds since the start on this hop."""
        return self.clock.monotonic() - self.started_at

    def tightened_to(self, instant: float) -> DeadlineContext:
        """A context that ends at `instant`, or at the present deadline if that is earlier."""
        return self if instant >= self.absolute_deadline else replace(self, absolute_deadline=instant)

    def tightened_after(self, seconds: float) -> DeadlineContext:
        """A context that ends in `seconds`, or at the present deadline if that is earlier."""
        return self.tightened_to(self.clock.monotonic() + seconds)


_SETTERS: Any = tuple(getattr(DeadlineContext, one.name).__set__ for one in fields(DeadlineContext))

NOWHERE: tuple[None, None] = (None, None)

# The current context, and the scope that owns the tasks started by the running task. They share one
# variable because every call sets and resets both.
HERE: ContextVar[tuple[DeadlineContext | None, Scope | None]] = ContextVar("deadline", default=NOWHERE)


def current() -> DeadlineContext:
    """The context of the running task. Raises NoDeadline if it has none."""
    context = HERE.get()[0]
    if context is None:
        raise NoDeadline(
            "no DeadlineContext is current: call from a mesh handler, or enter one with deadlinemesh.deadline.entered(...)"
        )
    return context


def current_or_none() -> DeadlineContext | None:
    """The context of the running task, or None if it has none."""
    return HERE.get()[0]


@contextmanager
def entered(context: DeadlineContext) -> Iterator[DeadlineContext]:
    """Make `context` current for the block.

        with entered(context):
            await call_upstream()

    This does not enforce the deadline. Scopes, `narrowed_at` and `narrowed_after` do.
    """
    token = HERE.set((context, HERE.get()[1]))
    try:
        yield context
    finally:
        HERE.reset(token)
