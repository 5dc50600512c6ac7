"""A bulkhead in virtual time, and work for its slots."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from tests.support.virtual import with_seconds

from deadlinemesh.admission import Bulkhead, Share, Wait
from deadlinemesh.deadline import entered
from deadlinemesh.testing import virtual_time

__all__ = ["SHARES", "Pool"]

SHARES = {"free": Share(1, band=1), "big": Share(3, band=1), "first": Share(1, band=0)}


class Pool:
    """A bulkhead in virtual time, with the order in which work began."""

    def __init__(self, limit: int, **options: Any) -> None:
        self.waits: list[Wait] = []
        self.begun: list[str] = []
        self.bulkhead = Bulkhead(
            "pool", limit, shares=SHARES, clock=virtual_time.clock(), on_wait=self.waits.append, **options
        )

    async def work(
        self, tenant: str, takes: float, *, seconds: float = 1000.0, tier: str = "free", name: str = "", kind: str = ""
    ) -> float:
        """Hold a slot for `takes` seconds. Returns the seconds waited for it."""
        with entered(replace(with_seconds(seconds, tenant_id=tenant), tier=tier)):
            async with self.bulkhead.slot(kind) as slot:
                self.begun.append(name or tenant)
                await asyncio.sleep(takes)
                return slot.waited

    async def keep_busy(self, tenant: str, takes: float) -> None:
        """Hold slots of `takes` seconds one after another, without end."""
        while True:
            await self.work(tenant, takes)

    async def end(self, error: type[BaseException], *, after: float) -> None:
        """Hold a slot for `after` seconds, then raise `error`."""
        with entered(with_seconds(1000.0)), suppress(error):
            async with self.bulkhead.slot():
                await asyncio.sleep(after)
                raise error("so it ends")

    async def all(self, *works: Awaitable[float]) -> list[float]:
        return [round(wait, 6) for wait in await asyncio.gather(*works)]

    async def taught(self, takes: float, times: int = 10, tenant: str = "acme", kind: str = "") -> Pool:
        for _ in range(times):
            await self.work(tenant, takes, kind=kind)
        self.begun.clear()
        self.waits.clear()
        return self
