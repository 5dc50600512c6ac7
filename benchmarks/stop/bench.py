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

from benchmarks.report import Options, Result, bar, median, result, spread
from benchmarks.stop.mesh import MeshUnderTest
from benchmarks.stop.plain import PlainUnderTest

__all__ = ["stop"]

RUNS = 500
SPREAD = ("deadlines_spread", "cancels_spread", "broken")
"""Over a second; a network falls silent under all connections at once, but each finds out when its own ping is due."""
AT_ONCE = {"deadlines_at_once": 5, "cancels_at_once": 9}
"""With how often mesh and plain are measured in turns, as their ratio counts: a noisy machine may be half as fast a minute later,
and a cancel is over in a tenth of a second."""
SCENARIOS = (*SPREAD, *AT_ONCE)


async def stop(options: Options) -> Result:
    """Measure all scenarios; `repetitions` is how often each is run, its figures being those of all runs together."""
    repetitions = options.repetitions or 1
    figures: dict[str, Any] = {}
    for scenario in SCENARIOS:
        mesh, plain, ratios = _Runs(), _Runs(), []
        for _ in range(repetitions * AT_ONCE.get(scenario, 1)):
            ratios.append(
                await mesh.once(MeshUnderTest, scenario) / (await plain.once(PlainUnderTest, scenario) or 1e-3)
            )
        figures[scenario] = {"mesh": mesh.figures(), "plain": plain.figures(), "p99_ratios": ratios}
    return result("stop", repetitions, figures, _bars(figures))


class _Runs:
    """The runs of one scenario on one side."""

    def __init__(self) -> None:
        self._late: dict[str, list[float]] = {}
        self._missed = 0

    async def once(self, under_test: type[MeshUnderTest | PlainUnderTest], scenario: str) -> float:
        """Run it once more. Its p99 over all hops, in milliseconds."""
        async with under_test(RUNS) as peers:
            await getattr(peers, scenario)()
            lateness, unfinished = await peers.lateness()
        self._missed += unfinished
        late = {hop: [max(0.0, one * 1000) for one in seconds] for hop, seconds in lateness.items()}
        for hop, values in late.items():
            self._late.setdefault(hop, []).extend(values)
        p99: float = spread([one for values in late.values() for one in values])["p99_ms"]
        return p99

    def figures(self) -> dict[str, Any]:
        """Of all runs together."""
        return {
            "hops": {hop: {**spread(values), "handlers": len(values)} for hop, values in self._late.items()},
            "all": spread([one for values in self._late.values() for one in values]),
            "missed": self._missed,
        }


def _bars(figures: dict[str, Any]) -> list[dict[str, Any]]:
    bars = []
    for scenario in SPREAD:
        for hop, measured in figures[scenario]["mesh"]["hops"].items():
            bars.append(bar(f"{scenario}: p99 at {hop}, ms", measured["p99_ms"], 20.0))
    for scenario in AT_ONCE:
        ratio = median(figures[scenario]["p99_ratios"])
        bars.append(bar(f"{scenario}: p99 over plain's, median of the pairs", ratio, 2.0))
    bars += [bar(f"{scenario}: missed", figures[scenario]["mesh"]["missed"], 0) for scenario in SCENARIOS]
    return bars
