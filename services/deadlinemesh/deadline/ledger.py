"""A ledger of time: wall time divided among phases, without overlap."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Generic, TypeVar

from deadlinemesh.deadline.clock import Clock

__all__ = ["Ledger", "PhaseTrack"]


P = TypeVar("P", bound=str)


class Ledger(Generic[P]):
    """Charges every instant since `started_at` to at most one phase.

    `ranks` has all phases. If several are active, the one with the lowest rank is charged.
    `opening` is active from the start. `on_change` is called with each phase that begins to be
    charged.

        ledger = Ledger({"work": 0, "wait": 1}, clock, clock.monotonic())
        with ledger.phase("wait"):
            ...
        ledger.spent()  # {'wait': 0.25}
    """

    def __init__(
        self,
        ranks: Mapping[P, int],
        clock: Clock,
        started_at: float,
        *,
        opening: P | None = None,
        on_change: Callable[[P], None] | None = None,
    ) -> None:
        self._ranks = ranks
        self._clock = clock
        self._started_at = started_at
        self._charged_until = started_at
        self._on_change = on_change
        self._active: Counter[P] = Counter([opening] if opening else ())
        self._in_force = opening
        self._spent: dict[P, float] = {}

    @contextmanager
    def phase(self, phase: P) -> Iterator[None]:
        """Make `phase` active for the block. Phases may overlap, in one task or in several."""
        self.enter(phase)
        try:
            yield
        finally:
            self.leave(phase)

    def enter(self, phase: P) -> None:
        """Make `phase` active until `leave`. For code that cannot use the block of `phase`."""
        self._active[phase] += 1
        self._switch()

    def leave(self, phase: P) -> None:
        """Undo one `enter`."""
        self._active[phase] -= 1
        if self._active[phase] <= 0:
            del self._active[phase]
        self._switch()

    def spent(self) -> dict[P, float]:
        """Seconds charged to each phase until now. Phases without any are left out."""
        self._charge()
        spent = self._spent
        return {phase: spent[phase] for phase in self._ranks if spent.get(phase, 0.0) > 0}

    def balance(self) -> tuple[float, dict[P, float]]:
        """Seconds since the start, and seconds charged to each phase.

        Both are sampled at one instant, so the phases never add up to more than the total.
        """
        spent = self.spent()
        return self._charged_until - self._started_at, spent

    def close(self) -> None:
        """Drop the phases, their times and `on_change`. A closed ledger may be kept for long."""
        self._on_change = None
        self._in_force = None
        self._active.clear()
        self._spent.clear()

    @property
    def elapsed(self) -> float:
        """Seconds since `started_at`."""
        return self._clock.monotonic() - self._started_at

    def _switch(self) -> None:
        in_force = min(self._active, key=self._ranks.__getitem__, default=None)
        if in_force is not self._in_force:
            self._charge()
            self._in_force = in_force
            if in_force is not None and self._on_change is not None:
                self._on_change(in_force)

    def _charge(self) -> None:
        now = self._clock.monotonic()
        if self._in_force is not None:
            self._spent[self._in_force] = self._spent.get(self._in_force, 0.0) + now - self._charged_until
        self._charged_until = now


class PhaseTrack(Generic[P]):
    """The phases of one activity, one after the other.

        track = PhaseTrack(ledger, "wait")
        track.enter("work")
        track.leave()

    `now` is the present phase, and None after `leave`.
    """

    def __init__(self, ledger: Ledger[P], first: P) -> None:
        self.now: P | None = first
        self._ledger = ledger
        ledger.enter(first)

    def enter(self, phase: P) -> None:
        """Go to `phase`. Does nothing if it is the present one, or after `leave`."""
        if phase is not self.now and self.now is not None:
            self._ledger.enter(phase)
            self._ledger.leave(self.now)
            self.now = phase

    def leave(self) -> None:
        """End the last phase. A second call does nothing."""
        if self.now is not None:
            self._ledger.leave(self.now)
            self.now = None
