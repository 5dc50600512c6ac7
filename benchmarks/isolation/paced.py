"""A tenant whose calls come at the same instants however it fares, beside whom and beside nobody."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

from benchmarks.report import quantile

__all__ = ["paced"]

WARM_UP = 2.0
"""Seconds of calls before the counting begins."""


async def paced(
    call: Callable[[], Awaitable[bool]], draw: random.Random, *, per_s: float, deadline: float, measured: float
) -> tuple[float, float]:
    """Good answers a second to `per_s` calls a second at random instants, and their p99 in seconds, over `measured` seconds; no
    answer counts as `deadline`.

    What counts is when a call was due, and not when it began: so with the same `draw` the same calls count each time.
    """
    taken: list[float] = []

    async def timed(counts: bool) -> None:
        began = time.monotonic()
        good = await call()
        if counts:
            taken.append(time.monotonic() - began if good else deadline)

    at = time.monotonic()
    counted_from, until = at + WARM_UP, at + WARM_UP + measured
    calls = []
    while (at := at + draw.expovariate(per_s)) < until:
        await asyncio.sleep(max(0.0, at - time.monotonic()))
        calls.append(asyncio.ensure_future(timed(at >= counted_from)))
    await asyncio.gather(*calls)
    return sum(one < deadline for one in taken) / measured, quantile(taken, 0.99)
