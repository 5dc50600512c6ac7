"""Deadlines: the time left for a call, and the end of all its work when the time is spent.

For services that embed deadlines:

    clock.py            `Clock`: the system's clock, and a virtual clock for tests
    context.py          `DeadlineContext`, and the current one; it can be narrowed, never extended
    scope.py            `Scope` owns a task tree and ends it at the exact deadline, with a cause
    narrowed.py         `narrowed_at`, `narrowed_after`: less time for one block
    background.py       work that outlives its caller, with its own deadline
    ledger.py           wall time by phase, without overlap
    retry.py            `retried`: attempts that fit into the remaining time
    retry_budget.py     a limit on the retries of one upstream
    silence_timeout.py  gives up an attempt that is silent for too long
    deferred.py         work that waits until the event loop is idle

Parts of the above, for this package only:

    cancel_rounds.py    repeated cancellation of work that does not end
    coarse_timers.py    distant deadlines without timers in the event loop

For this project's transport and hosts:

    lowlevel.py         the names that they import
    threads.py          scopes own the event loop's threads
    processes.py        scopes own the processes that async work starts
    lag.py              the event loop's lateness, and the work that caused it

Only the standard library and `deadlinemesh.errors` are used. An instant is in seconds on the local
monotonic clock, and names that end in `_at` take one. Names that end in `_after` take seconds.
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
