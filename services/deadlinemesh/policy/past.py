"""Keeps removed parts of a policy for the runs that began with them.

A run may continue for as long as its tier allows. Until the last run that began under a policy must
have ended, each hop serves the removed parts of that policy: tenants, models, tools, and
permissions to use them. No new run uses them: the edge grants runs, and the tool-runner lists
tools, by the policy in force.
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
"""Replaced policies that are kept at once. The oldest is dropped first."""


@dataclass(frozen=True, slots=True)
class Rest:
    """The resources of a replaced policy."""

    end: Callable[[], Coroutine[Any, Any, None]]
    """Closes the resources that only the replaced policy used, as soon as no call uses them."""
    needed_for: float = 0.0
    """Seconds in which calls of runs that began under the replaced policy may still arrive."""


GoOver = Callable[[], Rest | None]
"""Applies a prepared policy immediately. Returns the Rest of the one before, or None."""


class Past(Generic[T]):
    """The resources of earlier policies, such as their providers.

    Iteration yields those that the current call's run may have begun with, the newest first.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: deque[tuple[float, Policy, T]] = deque(maxlen=MOST_KEPT)

    def keep(self, served: T, was: Policy, wanted: Policy) -> float:
        """Keep `served`, the resources of the policy `was`, if `wanted` takes anything away.

        Returns the seconds for which they are kept: the longest run budget of `was`, or 0.
        """
        if not takes_away(was, wanted):
            return 0.0
        seconds = max(tier.run_budget for tier in was.tiers.values())
        self._kept.append((self._clock.monotonic() + seconds, was, served))
        return seconds

    def __iter__(self) -> Iterator[T]:
        return self.serving(current().absolute_deadline)

    def serving(self, deadline_at: float) -> Iterator[T]:
        """Yield the kept resources that a call with this deadline may need, the newest first.

        A call with a later deadline than the end of their time belongs to a run that began later.
        """
        self._forget()
        return (served for until, _, served in reversed(self._kept) if deadline_at <= until)

    def shares(self, policy: Policy, *, by_model_queue: bool = False) -> Mapping[str, Share]:
        """The shares of the tiers of `policy`, and of earlier tiers that running runs may have."""
        self._forget()
        policies = [*(was for _, was, _ in self._kept), policy]
        return {tier: one for each in policies for tier, one in each.shares(by_model_queue=by_model_queue).items()}

    def _forget(self) -> None:
        now = self._clock.monotonic()
        while self._kept and self._kept[0][0] <= now:
            self._kept.popleft()


def takes_away(was: Policy, wanted: Policy) -> bool:
    """True if `was` has a tier, tenant, model, tool or permission that `wanted` does not have."""
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
