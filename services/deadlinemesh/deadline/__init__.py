"""Deadlines without I/O: what time is left, who may spend it, and how work ends when it is gone.

    clock.py        `Clock`, the real one and one that only moves when told
    context.py      `DeadlineContext` and the ContextVar that carries it; narrowing, never extending
    scope.py        `Scope` owns a task tree, ends it at the exact instant, and tells why
    rounds.py       when what is being ended is told again
    lookout.py      what watches deadlines that are far away, so that the event loop needs no timers for them
    threads.py      what runs in the event loop's threads has an owner too
    lag.py          how late the event loop is, and whose work made it so
    narrowed.py     `narrowed_at` / `narrowed_after`: a share of the current time for one block
    deferred.py     what can wait until the event loop has nothing more urgent
    background.py   work that outlives its caller, with its owner's tenant and a deadline of its own
    allotment.py    how much of what remains a model turn may have
    ledger.py       where the time went, by phase, without overlap
    retry.py        attempts that fit into what remains
    retry_budget.py how many of them one upstream may be given
    patience.py     when to give up one that seems to hang

Standard library only. Instants are on the local monotonic clock, in seconds; names that end in `_at` take one. Names that
end in `_after` take a duration in seconds.
"""

from deadlinemesh.deadline.allotment import Allotment, Pace, allot
from deadlinemesh.deadline.background import Background, BackgroundTask
from deadlinemesh.deadline.clock import SYSTEM_CLOCK, Clock, SystemClock, VirtualClock
from deadlinemesh.deadline.context import DeadlineContext, current, current_or_none, entered
from deadlinemesh.deadline.deferred import Deferred
from deadlinemesh.deadline.ledger import Ledger, Phase, Successive
from deadlinemesh.deadline.narrowed import Narrowed, narrowed_after, narrowed_at
from deadlinemesh.deadline.patience import GivenUp, Patience
from deadlinemesh.deadline.retry import Attempt, Retry, RetryPolicy, retried
from deadlinemesh.deadline.retry_budget import RetryBudget
from deadlinemesh.deadline.scope import Orphan, Scope, Scopes

__all__ = [
    "SYSTEM_CLOCK",
    "Allotment",
    "Attempt",
    "Background",
    "BackgroundTask",
    "Clock",
    "DeadlineContext",
    "Deferred",
    "GivenUp",
    "Ledger",
    "Narrowed",
    "Orphan",
    "Pace",
    "Patience",
    "Phase",
    "Retry",
    "RetryBudget",
    "RetryPolicy",
    "Scope",
    "Scopes",
    "Successive",
    "SystemClock",
    "VirtualClock",
    "allot",
    "current",
    "current_or_none",
    "entered",
    "narrowed_after",
    "narrowed_at",
    "retried",
]
