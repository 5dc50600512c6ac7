"""How soon every hop is idle once a run's time is spent, its client has cancelled, or its connection is dead.

500 concurrent runs over the real processes with tracing on, four in five waiting for a tool that would take a minute and one in
five for a model that would stream as long, so that all three services are at work. Beside it, as many calls over a plain chain of
as many processes. All processes share the machine's monotonic clock. For each hop the figure is the time from the instant at
which its work should have ended to the end of its handler, and of the run itself at the orchestrator:

    deadline    the hop's own exact deadline; for a run, the internal deadline at which its answer is due
    cancel      the instant at which the client cancelled
    broken      the instant at which the network went silent, plus what keepalive is allowed to find out

In the plain chain the deadline is the client's own, since that is what each of its hops should have held.
"""

from __future__ import annotations

from typing import Any

from benchmarks.report import Options, Result, bar, result, spread
from benchmarks.stop_mesh import MeshUnderTest
from benchmarks.stop_plain import PlainUnderTest

__all__ = ["stop"]

RUNS = 500
SPREAD = ("deadlines_spread", "cancels_spread", "broken")
"""Over a second; a network falls silent under all connections at once, but each finds out when its own ping is due."""
AT_ONCE = ("deadlines_at_once", "cancels_at_once")
SCENARIOS = (*SPREAD, *AT_ONCE)


async def stop(options: Options) -> Result:
    """Measure all scenarios; `repetitions` is how often each is run, its figures being those of all runs together."""
    repetitions = options.repetitions or 1
    figures: dict[str, Any] = {}
    for scenario in SCENARIOS:
        figures[scenario] = {"mesh": {}, "plain": {}}
        for kind, under_test in (("mesh", MeshUnderTest), ("plain", PlainUnderTest)):
            late: dict[str, list[float]] = {}
            missed = 0
            for _ in range(repetitions):
                async with under_test(RUNS) as peers:
                    await getattr(peers, scenario)()
                    lateness, unfinished = await peers.lateness()
                missed += unfinished
                for hop, seconds in lateness.items():
                    late.setdefault(hop, []).extend(max(0.0, one * 1000) for one in seconds)
            all_hops = [one for values in late.values() for one in values]
            figures[scenario][kind] = {
                "hops": {hop: {**spread(values), "handlers": len(values)} for hop, values in late.items()},
                "all": spread(all_hops),
                "missed": missed,
            }
    return result("stop", repetitions, figures, _bars(figures))


def _bars(figures: dict[str, Any]) -> list[dict[str, Any]]:
    bars = []
    for scenario in SPREAD:
        for hop, measured in figures[scenario]["mesh"]["hops"].items():
            bars.append(bar(f"{scenario}: p99 at {hop}, ms", measured["p99_ms"], 20.0))
    for scenario in AT_ONCE:
        mesh, plain = figures[scenario]["mesh"]["all"], figures[scenario]["plain"]["all"]
        bars.append(bar(f"{scenario}: p99 over plain's", mesh["p99_ms"] / plain["p99_ms"], 2.0))
    bars += [bar(f"{scenario}: missed", figures[scenario]["mesh"]["missed"], 0) for scenario in SCENARIOS]
    return bars
