"""The article's incident: the tenants' runs, and the provider that turns slow.

Both acts are played from the same seeds.
"""

from __future__ import annotations

from dataclasses import dataclass

from deadlinemesh.demo_world import DemoWorld
from deadlinemesh.demo_world.latency import Latency
from deadlinemesh.views.run import Order

__all__ = ["AGGRESSOR", "CALM", "DEADLINE", "POOL", "SCENES", "SECONDS", "Scene", "TurningWorld", "incident"]

DEADLINE = 6.0
"""Seconds granted to each run."""
POOL = 8
"""Connections to the upstreams, shared by all tenants."""
AHEAD = 0.8
"""Seconds that B's runs are at work before A and C come."""
SECONDS = AHEAD + DEADLINE + 1.5
"""Seconds that an act is watched. All deadlines are over by then, and work after them is
visible.
"""
AGGRESSOR = "bolt"


@dataclass(frozen=True, slots=True)
class Scene:
    """One tenant's run, `at` seconds after the provider has turned slow."""

    tenant: str
    about: str
    order: Order
    label: str
    """`about` in few words."""
    at: float = 0.0


SCENES = (
    Scene(
        "acme",
        "CRM, vector search and arithmetic at once",
        Order(
            'Look up the customer "northwind", search the knowledge base for "refund policy", and calculate 1299 * 12',
            deadline=DEADLINE,
        ),
        "CRM, search, arithmetic",
        AHEAD,
    ),
    Scene(
        "bolt",
        "a third-party data provider, turned slow",
        Order("Get the market quotes for BRWF and ACME", deadline=DEADLINE),
        "slow data provider",
    ),
    Scene(
        "cora",
        "an internal service that fans out to five",
        Order("Build the portfolio report on account PF-48213", deadline=DEADLINE),
        "fans out to five",
        AHEAD,
    ),
)
"""One run of each tenant. Their waterfalls are shown."""

CALM = {
    "acme": 'Look up the customer "halden" and search the knowledge base for "shipping times"',
    "bolt": "Get the market quotes for ACME",
    "cora": "Build the portfolio report on account PF-10007",
}
"""The prompts of each tenant shortly before, while the provider was quick."""

MORE_OF_B = (("CSTI", "HLDN"), ("NRBY", "OSTR"), ("QNTM", "VLTA"), ("KRNX", "LMBD"), ("PRSM", "TRVO"))


def incident() -> tuple[Scene, ...]:
    """All runs after the provider has turned slow.

    These are the runs of SCENES, and more of B's. Together B's runs need more connections than
    there are.
    """
    more = (
        Scene(
            AGGRESSOR,
            "more quotes",
            Order(f"Get the market quotes for {one} and {other}", deadline=DEADLINE),
            "more of it",
        )
        for one, other in MORE_OF_B
    )
    return (*SCENES, *more)


class TurningWorld(DemoWorld):
    """The demo world. Its market data is quick until it turns slow."""

    slow = False
    _QUICK = 0.5
    _SLOW = Latency(10.0, 16.0)

    def latency(self, endpoint: str, key: str) -> float:
        usual = super().latency(endpoint, key)
        if endpoint != "market":
            return usual
        return self._SLOW.draw(endpoint, key, self._seed) if self.slow else min(usual, self._QUICK)

    def open_requests(self) -> int:
        """The number of requests being answered, even if no client waits for them."""
        return sum(calls.started - calls.ended - calls.abandoned for calls in self.calls.values())
