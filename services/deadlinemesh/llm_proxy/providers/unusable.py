"""The stand-in for a model that cannot be used: every turn is refused at once, so that a fallback takes over.

The log says as the llm-proxy starts what would make it usable: variables of the operator's are no tenant's affair.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from deadlinemesh.errors import UpstreamRefused
from deadlinemesh.vocabulary import ModelEvent, TurnRequest

__all__ = ["MissingKey", "Unusable", "UnusableProvider"]


class Unusable(ValueError):
    """The environment does not hold what a model needs. Says what to set."""


class MissingKey(Unusable):
    """The environment does not hold the key that policy names. Says what to set."""


class UnusableProvider:
    """Refuses every turn of the model of this name."""

    def __init__(self, model: str) -> None:
        self.model = model

    async def stream(self, turn: TurnRequest) -> AsyncGenerator[ModelEvent, None]:
        raise UpstreamRefused(f"model {self.model} cannot be used here; the llm-proxy's log says why")
        yield  # unreachable: it makes this a generator

    async def aclose(self) -> None:
        pass
