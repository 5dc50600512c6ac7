"""The store of kept results in a simulated world: the embedded one, behind whatever the scenario puts in its way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count

from tests.simulation.scenario import FOR_EVER, Store, StoreEnd, StoreStep
from tests.simulation.upstreams import Stage, cling

from deadlinemesh.testing import virtual_time
from deadlinemesh.tool_runner.cache import CacheKey, MemoryCache

__all__ = ["SimulatedStore"]


class SimulatedStore:
    """A `ResultCache` that plays `script`, and writes down who asked for what and what was found."""

    def __init__(self, script: Store, stage: Stage) -> None:
        self._script = script
        self._stage = stage
        self._memory = MemoryCache(script.most_bytes, virtual_time.clock())
        self._reads, self._writes = count(), count()

    async def get(self, key: CacheKey) -> str | None:
        step = self._script.reads[next(self._reads) % len(self._script.reads)]
        async with self._operation("read", key, step) as work:
            found = await self._memory.get(key)
            self._stage.note(work, content=found)
        if found is not None:
            self._stage.reached["a kept result is found"] += 1
        return found

    async def put(self, key: CacheKey, content: str, seconds: float) -> None:
        step = self._script.writes[next(self._writes) % len(self._script.writes)]
        async with self._operation("write", key, step) as work:
            await self._memory.put(key, content, seconds)
            self._stage.note(work, content=content, keep_for=seconds)

    @asynccontextmanager
    async def _operation(self, kind: str, key: CacheKey, step: StoreStep) -> AsyncIterator[int]:
        stage = self._stage
        question = json.loads(key.arguments)["call"]
        place = stage.place_of(key.tool, question)
        whose = {"question": question, "owner": key.tenant_id}
        with stage.at_work(kind, stage.call(place)[0], place, key.tool, clings=step.clings, **whose) as work:
            if step.comes_to is not StoreEnd.WORKS:
                stage.faults[f"a {kind} of the store {step.comes_to}"] += 1
            try:
                await asyncio.sleep(FOR_EVER if step.comes_to is StoreEnd.NEVER else step.takes)
            except asyncio.CancelledError:
                stage.note(work, cut=True)
                stage.faults[f"a {kind} of the store is cut"] += 1
                if step.clings:
                    stage.faults[f"a {kind} of the store clings to its work"] += 1
                    await cling(step.clings)
                raise
            if step.comes_to is StoreEnd.FAILS:
                raise ConnectionResetError("the store is down")
            if step.comes_to is StoreEnd.CANCELS_ITSELF:
                raise asyncio.CancelledError
            yield work
