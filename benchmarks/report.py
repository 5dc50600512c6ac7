"""The form of every result: figures, bars, and whether all bars hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Options", "Result", "bar", "median", "quantile", "result", "spread"]

Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Options:
    """What a benchmark may be told. None leaves it to the benchmark."""

    repetitions: int | None = None
    seed: int = 1
    only: tuple[str, ...] = ()
    """Names of the parts to run, of a benchmark that has parts; none: all."""
    seconds: float | None = None
    """How long each measurement takes, of a benchmark that says so."""


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest of `values` that at least `share` of them do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def median(values: Sequence[float]) -> float:
    """The middle of `values`."""
    return quantile(values, 0.5)


def spread(values: Sequence[float], unit: str = "ms") -> dict[str, float]:
    """p50, p99 and max of `values`, rounded to a thousandth."""
    figures = {"p50": quantile(values, 0.5), "p99": quantile(values, 0.99), "max": max(values)}
    return {f"{name}_{unit}": round(value, 3) for name, value in figures.items()}


def bar(what: str, measured: float, limit: float, *, at_least: bool = False) -> dict[str, Any]:
    """One promise and whether the measurement keeps it."""
    holds = measured >= limit if at_least else measured <= limit
    return {"what": what, "measured": round(measured, 3), "limit": round(limit, 3), "holds": holds}


def result(name: str, repetitions: int, figures: Result, bars: Sequence[dict[str, Any]]) -> Result:
    """A benchmark's result."""
    bars = list(bars)
    return {
        "name": name,
        "repetitions": repetitions,
        **figures,
        "bars": bars,
        "holds": all(one["holds"] for one in bars),
    }
