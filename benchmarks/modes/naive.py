"""A platform as it is commonly written, with the five patterns that the article calls broken. Naive code, to be measured.

One process, one connection pool, one event loop for all tenants. Every operation has a timeout of its own and no run has a
deadline: a user who has waited for long enough is gone, and the platform does not know.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import httpx

from benchmarks.modes.load import Run
from benchmarks.modes.store import WRITE_S

__all__ = ["Naive"]

TIMEOUT = 10.0
"""Of each operation; waiting for a connection is none, as with most HTTP clients."""
FLUSH_TIMEOUT = 2.0


class Naive:
    """The platform. `pool` connections and as many model slots are shared by all tenants."""

    def __init__(self, urls: Mapping[str, str], pool: int) -> None:
        self._urls = urls
        # Retries storm the upstream where the pool does not hold them back.
        self._pooled = self._client(pool)
        self._unbounded = self._client(None)
        self._slots = asyncio.Semaphore(pool)
        self._writes: set[asyncio.Task[None]] = set()
        self._waited: defaultdict[str, float] = defaultdict(float)
        self._waiting: dict[object, tuple[str, float]] = {}
        self.writes: list[dict[str, Any]] = []
        """Of the results' store: whose each write was, when it began and ended, and whether it was cancelled."""
        self.ways: dict[str, Callable[[Run], Coroutine[Any, Any, None]]] = {
            "pool starvation": self._pool_starvation,
            "fan-out": self._fan_out,
            "background work": self._background_work,
            "model time": self._model_time,
            "retries": self._retries,
        }

    def waited_by(self, key: str, now: float) -> float:
        """Seconds that the run whose first call has `key` has waited for what others held, or for others' work, until `now`."""
        return self._waited[key] + sum(now - since for waiter, since in self._waiting.values() if waiter == key)

    def _wait(self, run: Run) -> Callable[[float], None]:
        """Begin a wait; what is returned ends it, when called with the seconds of it that were the run's own work."""
        wait = object()
        self._waiting[wait] = (run.keys[0], time.monotonic())

        def over(own: float) -> None:
            key, since = self._waiting.pop(wait, (run.keys[0], time.monotonic()))
            self._waited[key] += max(0.0, time.monotonic() - since - own)

        return over

    async def aclose(self) -> None:
        """Close all connections, and with them whatever still runs at the upstreams."""
        await self._pooled.aclose()
        await self._unbounded.aclose()

    async def _pool_starvation(self, run: Run) -> None:
        await self._call(self._pooled, "pool", run, run.keys[0])

    async def _fan_out(self, run: Run) -> None:
        # Each child gets the whole timeout, whatever is left of its parent's time.
        await asyncio.gather(*(self._call(self._pooled, "fan_out", run, key) for key in run.keys))

    async def _background_work(self, run: Run) -> None:
        await self._call(self._unbounded, "background", run, run.keys[0])
        write = asyncio.create_task(self._write(run))
        self._writes.add(write)
        write.add_done_callback(self._writes.discard)
        # "Nothing may be lost": whoever ends a run waits for all that is running in the background, as if it were its own.
        over = self._wait(run)
        try:
            _, late = await asyncio.wait(self._writes, timeout=FLUSH_TIMEOUT)
            for one in late:  # whosever they are
                one.cancel()
        finally:
            over(WRITE_S[run.tenant.lower()])

    async def _model_time(self, run: Run) -> None:
        over = self._wait(run)
        async with self._slots:
            over(0.0)
            async with asyncio.timeout(TIMEOUT):  # a fixed slice
                turn = {"model": "x", "stream": True, "messages": [{"role": "user", "content": f"Say {run.keys[0]}"}]}
                url = f"{self._urls['model']}/v1/chat/completions"
                async with self._unbounded.stream("POST", url, json=turn) as response:
                    await response.aread()

    async def _retries(self, run: Run) -> None:
        for attempt in range(3):
            try:
                await self._call(self._unbounded, "retries", run, run.keys[0])
                break
            except httpx.HTTPError:
                if attempt == 2:
                    raise
                await asyncio.sleep(0.1 * 2**attempt)

    async def _call(self, client: httpx.AsyncClient, mode: str, run: Run, key: str) -> None:
        over = self._wait(run)

        async def trace(name: str, info: Any) -> None:
            over(0.0)  # the first thing that is told comes once there is a connection, or leave to make one

        response = await client.get(f"{self._urls[mode]}/{mode}/{key}", extensions={"trace": trace})
        response.raise_for_status()

    async def _write(self, run: Run) -> None:
        wrote: dict[str, Any] = {"owner": run.tenant, "began": time.monotonic(), "ended": None, "lost": False}
        self.writes.append(wrote)
        try:
            await asyncio.sleep(WRITE_S[run.tenant.lower()])
        except asyncio.CancelledError:
            wrote["lost"] = True
            raise
        finally:
            wrote["ended"] = time.monotonic()

    def _client(self, connections: int | None) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=connections)
        return httpx.AsyncClient(timeout=httpx.Timeout(TIMEOUT, pool=None), limits=limits, trust_env=False)
