"""Model slots: how many turns a model takes at once. Who comes first is served first; waiting is measured."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from deadlinemesh.deadline import Clock

__all__ = ["Slots"]


class Slots:
    """The slots of each model, by its name in policy."""

    def __init__(self, limits: Mapping[str, int], clock: Clock) -> None:
        self._clock = clock
        self._free = {model: asyncio.Semaphore(limit) for model, limit in limits.items()}

    @asynccontextmanager
    async def hold(self, model: str) -> AsyncIterator[float]:
        """Wait for a slot of `model` and hold it for the block. Gives the wait, in seconds.

        The caller's scope bounds the wait: a waiter that is cancelled leaves the line without taking a slot with it.
        """
        asked_at = self._clock.monotonic()
        async with self._free[model]:
            yield self._clock.monotonic() - asked_at
