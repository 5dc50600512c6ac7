"""What a reload takes away, kept for the runs that began with it.

A run may go on for as long as its tier allows. Until the last that began under a policy must have ended, each hop serves what
only that policy had: a tenant that is gone, a model, a tool, or the permission to use one. Nothing new begins with it: the edge
grants runs, and the tool-runner lists tools, by the policy in force.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from deadlinemesh.admission import Share
from deadlinemesh.deadline import Clock, current
from deadlinemesh.policy.model import Policy, TenantPolicy

__all__ = ["GoOver", "Past", "Rest", "takes_away"]

T = TypeVar("T")

MOST_KEPT = 16
"""Policies in whose place others came that are kept at once; of more, the oldest goes."""


@dataclass(frozen=True, slots=True)
class Rest:
    """What is left of a policy in whose place another came."""

    end: Callable[[], Coroutine[Any, Any, None]]
    """Closes what only that policy used, once no call uses it."""
    needed_for: float = 0.0
    """Seconds in which calls of runs that began under it may still come."""


GoOver = Callable[[], Rest | None]
"""Goes over to a policy for which all is made, at once. Returns what is left of the one before, if anything."""


class Past(Generic[T]):
    """What served earlier policies, such as their providers. Iterated, it gives those that the current call's run may have begun
    with, the newest first.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: deque[tuple[float, Policy, T]] = deque(maxlen=MOST_KEPT)

    def keep(self, served: T, was: Policy, wanted: Policy) -> float:
        """Keep what `served` the policy `was`, if `wanted` in its place takes anything away. Returns for how many seconds."""
        if not takes_away(was, wanted):
            return 0.0
        seconds = max(tier.run_budget for tier in was.tiers.values())
        self._kept.append((self._clock.monotonic() + seconds, was, served))
        return seconds

    def __iter__(self) -> Iterator[T]:
        return self.serving(current().absolute_deadline)

    def serving(self, deadline_at: float) -> Iterator[T]:
        """What a call with this deadline may belong to: one with a later deadline is of a run that began later."""
        self._forget()
        return (served for until, _, served in reversed(self._kept) if deadline_at <= until)

    def shares(self, policy: Policy, *, by_model_queue: bool = False) -> Mapping[str, Share]:
        """The shares of the tiers of `policy`, and of those that runs at work may still have."""
        self._forget()
        policies = [*(was for _, was, _ in self._kept), policy]
        return {tier: one for each in policies for tier, one in each.shares(by_model_queue=by_model_queue).items()}

    def _forget(self) -> None:
        now = self._clock.monotonic()
        while self._kept and self._kept[0][0] <= now:
            self._kept.popleft()


def takes_away(was: Policy, wanted: Policy) -> bool:
    """Whether there is a tier, a tenant, a model, a tool or a permission in `was` that is not in `wanted`."""
    if was.tiers.keys() - wanted.tiers or was.models.keys() - wanted.models or was.tenants.keys() - wanted.tenants:
        return True
    if was.tools.http.keys() - wanted.tools.http or set(was.tools.modules) - set(wanted.tools.modules):
        return True
    return any(_narrows(tenant, wanted.tenants[name]) for name, tenant in was.tenants.items())


def _narrows(was: TenantPolicy, wanted: TenantPolicy) -> bool:
    return any(
        after and (not before or not set(before) <= set(after))  # an empty list allows all
        for before, after in ((was.models, wanted.models), (was.tools, wanted.tools))
    )
