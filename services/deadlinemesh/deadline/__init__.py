"""Deadlines: the time left, its owner, and the end of work when it is spent.

For services that embed deadlines:

    clock.py            `Clock`, the system's, and one that moves by hand
    context.py          `DeadlineContext` and the current one; it narrows and never extends
    scope.py            `Scope` owns a task tree and ends it at the exact instant, with a cause
    narrowed.py         `narrowed_at`, `narrowed_after`: less time for one block
    background.py       work that outlives its caller, with a deadline of its own
    ledger.py           time by phase, without overlap
    retry.py            attempts that fit into the time left
    retry_budget.py     the retries that one upstream may get
    silence_timeout.py  the end of an attempt that is silent for too long

For this project's transport and hosts, through `lowlevel.py`:

    cancel_rounds.py    repeated cancellation of work that does not end
    coarse_timers.py    far deadlines without timers in the event loop
    threads.py          threads of the event loop have owners too
    processes.py        processes that async work starts have owners too
    lag.py              the event loop's lateness, and the work that caused it
    deferred.py         work for an idle event loop

Standard library only. Instants are on the local monotonic clock, in seconds; names that end in `_at`
take one. Names that end in `_after` take a duration in seconds.
"""

from deadlinemesh.deadline.background import Background, BackgroundTask
from deadlinemesh.deadline.clock import SYSTEM_CLOCK, Clock, SystemClock, VirtualClock
from deadlinemesh.deadline.context import DeadlineContext, current, current_or_none, entered
from deadlinemesh.deadline.deferred import Deferred
from deadlinemesh.deadline.ledger import Ledger, PhaseTrack
from deadlinemesh.deadline.narrowed import Narrowed, narrowed_after, narrowed_at
from deadlinemesh.deadline.retry import Attempt, Retry, RetryPolicy, retried
from deadlinemesh.deadline.retry_budget import RetryBudget
from deadlinemesh.deadline.scope import Orphan, Scope, Scopes
from deadlinemesh.deadline.silence_timeout import AttemptHung, SilenceTimeout

__all__ = [
    "SYSTEM_CLOCK",
    "Attempt",
    "AttemptHung",
    "Background",
    "BackgroundTask",
    "Clock",
    "DeadlineContext",
    "Deferred",
    "Ledger",
    "Narrowed",
    "Orphan",
    "PhaseTrack",
    "Retry",
    "RetryBudget",
    "RetryPolicy",
    "Scope",
    "Scopes",
    "SilenceTimeout",
    "SystemClock",
    "VirtualClock",
    "current",
    "current_or_none",
    "entered",
    "narrowed_after",
    "narrowed_at",
    "retried",
]
