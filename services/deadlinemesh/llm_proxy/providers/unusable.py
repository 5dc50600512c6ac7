"""The stand-in for a model that cannot be used: every turn is refused at once, so that a fallback takes over."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from deadlinemesh.errors import UpstreamRefused
from deadlinemesh.llm_proxy.conversation import Event, TurnRequest

__all__ = ["MissingKey", "Unusable", "UnusableProvider"]


class Unusable(ValueError):
    """The environment does not hold what a model needs. Says what to set."""


class MissingKey(Unusable):
    """The environment does not hold the key that policy names. Says what to set."""


class UnusableProvider:
    """Refuses with `why`, which says what would make the model usable."""

    def __init__(self, why: str) -> None:
        self.why = why

    async def stream(self, turn: TurnRequest) -> AsyncGenerator[Event, None]:
        raise UpstreamRefused(self.why)
        yield  # unreachable: it makes this a generator

    async def aclose(self) -> None:
        pass
