"""The latencies of the endpoints. Lognormal, like those of real services: a long tail without an
upper end.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["LATENCIES", "Latency"]

_P99 = 2.3263478740408408
"""The 99th percentile of the standard normal distribution."""


@dataclass(frozen=True, slots=True)
class Latency:
    """A lognormal distribution, given by its median and its 99th percentile in seconds."""

    median: float
    p99: float

    def draw(self, endpoint: str, key: str, seed: int) -> float:
        """Seconds for one request. The same request under the same seed always takes
        the same time.
        """
        sigma = math.log(self.p99 / self.median) / _P99
        return self.median * math.exp(sigma * random.Random(f"{seed}|{endpoint}|{key}").gauss(0.0, 1.0))


LATENCIES: Mapping[str, Latency] = {
    "crm": Latency(0.040, 0.070),
    "vector": Latency(0.080, 0.150),
    "market": Latency(1.2, 12.0),  # the article's third-party provider
    "positions": Latency(0.060, 0.150),
    "cash": Latency(0.030, 0.080),
    "risk": Latency(0.400, 1.5),
    "fees": Latency(0.050, 0.120),
    "news": Latency(0.800, 4.0),
}
