"""The benchmarks by name."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from benchmarks.exact.bench import exact
from benchmarks.goodput.bench import goodput
from benchmarks.hostile.bench import hostile
from benchmarks.hostile.unread import unread
from benchmarks.isolation.bench import isolation
from benchmarks.modes.bench import modes
from benchmarks.report import Options, Result
from benchmarks.soak.bench import soak
from benchmarks.stop.bench import stop
from benchmarks.transport.drift import drift
from benchmarks.transport.overhead import overhead
from benchmarks.upstreams.blackhole import blackhole
from benchmarks.upstreams.retries import retries

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
