"""The provider of a model that cannot be used. It refuses every turn at once, for a fallback.

The llm-proxy logs the remedy when it starts. Tenants do not see the operator's variables.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from deadlinemesh.errors import UpstreamRefused
from deadlinemesh.vocabulary import ModelEvent, TurnRequest

__all__ = ["MissingKey", "Unusable", "UnusableProvider"]


class Unusable(ValueError):
    """The environment lacks a value that a model needs. The message names the remedy."""


class MissingKey(Unusable):
    """The environment lacks the key that policy names. The message names the remedy."""


class UnusableProvider:
    """Refuses every turn of the model with this name. Raises UpstreamRefused."""

    def __init__(self, model: str) -> None:
        self.model = model

    async def stream(self, turn: TurnRequest) -> AsyncGenerator[ModelEvent, None]:
        raise UpstreamRefused(f"model {self.model} cannot be used here; the llm-proxy's log says why")
        yield  # unreachable: it makes this a generator

    async def aclose(self) -> None:
        pass
