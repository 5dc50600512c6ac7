"""The load of the modes benchmark: who asks for what, and when. The naive and the meshed side are given the same.

Tenant A behaves: ten runs a second, evenly but for a seeded fifth, each of one quick call. Tenant B comes after a while, in an open
loop, and misbehaves in the way that the mode is named after.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

__all__ = ["COUNTED_FROM", "FLOOD_FROM", "MODES", "UNTIL", "Mode", "Run", "load"]

FLOOD_FROM, COUNTED_FROM, UNTIL = 0.6, 1.1, 3.1
"""Seconds: A is alone until the first, B has built up by the second, nobody begins a run after the third."""

VICTIM_EVERY = 0.1
VICTIM_S, AGGRESSOR_S = 1.0, 1.2
"""What A's and B's runs are given."""


@dataclass(frozen=True, slots=True)
class Mode:
    """One of the ways in which concurrent calls break a budget."""

    name: str
    aggressor_per_s: float
    aggressor_parts: int = 1
    """Calls of one run of B, side by side."""


MODES = (
    Mode("pool starvation", 12.0),
    Mode("fan-out", 4.0, aggressor_parts=5),
    Mode("background work", 10.0),
    Mode("model time", 12.0),
    Mode("retries", 15.0),
)


@dataclass(frozen=True, slots=True)
class Run:
    """One run: `at` seconds after the beginning, with `seconds` to be answered in."""

    tenant: str
    number: int
    at: float
    seconds: float
    parts: int = 1

    @property
    def keys(self) -> tuple[str, ...]:
        """What each of its calls asks for, such as AAACB: A's third run, its second call. No two calls share one."""
        letters = [chr(ord("A") + self.number // 26**place % 26) for place in (2, 1, 0)]
        return tuple(f"{self.tenant}{''.join(letters)}{chr(ord('A') + part)}" for part in range(self.parts))

    @property
    def counted(self) -> bool:
        """Whether the run tells how A fares while B misbehaves."""
        return self.tenant == "A" and self.at >= COUNTED_FROM


def load(mode: Mode, seed: str) -> list[Run]:
    """The runs of `mode`, in the order of their beginning."""
    draw = random.Random(seed)
    runs: list[Run] = []
    at = 0.0
    while at < UNTIL:
        runs.append(Run("A", len(runs), at, VICTIM_S))
        at += VICTIM_EVERY * draw.uniform(0.8, 1.2)
    at, number = FLOOD_FROM, 0
    while (at := at + draw.expovariate(mode.aggressor_per_s)) < UNTIL:
        runs.append(Run("B", number, at, AGGRESSOR_S, mode.aggressor_parts))
        number += 1
    return sorted(runs, key=lambda run: run.at)
