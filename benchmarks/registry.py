"""The benchmarks by name."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from benchmarks.blackhole import blackhole
from benchmarks.drift import drift
from benchmarks.exact import exact
from benchmarks.goodput import goodput
from benchmarks.hostile.bench import hostile
from benchmarks.hostile.unread import unread
from benchmarks.isolation import isolation
from benchmarks.modes import modes
from benchmarks.overhead import overhead
from benchmarks.report import Options, Result
from benchmarks.retries import retries
from benchmarks.soak import soak
from benchmarks.stop import stop

__all__ = ["BENCHES"]

BENCHES: dict[str, Callable[[Options], Awaitable[Result]]] = {
    "drift": drift,
    "exact": exact,
    "stop": stop,
    "overhead": overhead,
    "goodput": goodput,
    "isolation": isolation,
    "retries": retries,
    "blackhole": blackhole,
    "modes": modes,
    "soak": soak,
    "hostile": hostile,
    "unread": unread,
}
