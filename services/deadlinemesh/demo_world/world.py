"""The endpoints and their call counts."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deadlinemesh.deadline import SYSTEM_CLOCK, DeadlineContext, current, current_or_none, entered, narrowed_at
from deadlinemesh.demo_world import data
from deadlinemesh.demo_world.disconnect import StopsWithItsCaller
from deadlinemesh.demo_world.latency import LATENCIES
from deadlinemesh.errors import DeadlineSpent
from deadlinemesh.tool_runner.kinds.cancelled_once import cancelled_once
from deadlinemesh.transport import http_deadline

__all__ = ["Calls", "DemoWorld"]

Endpoint = Callable[[Request], Awaitable[Response]]

ANSWER_RESERVE = 0.05
"""Seconds that the report holds back for its answer, but at most a fifth of its remaining time."""


@dataclass(slots=True)
class Calls:
    """Call counts of one endpoint. Calls that are neither ended nor abandoned are still running."""

    started: int = 0
    ended: int = 0
    """Answered, also with an error."""
    abandoned: int = 0
    """Stopped because the caller left."""


class DemoWorld:
    """An ASGI application. `speed` divides all latencies: 2.0 is twice as fast, `math.inf` answers
    at once.
    """

    def __init__(self, *, seed: int = 0, speed: float = 1.0) -> None:
        if not speed > 0:
            raise ValueError(f"speed must be greater than 0, not {speed}")
        self.calls: dict[str, Calls] = {}
        self._counted = asyncio.Event()
        self._seed = seed
        self._speed = speed
        routes = [
            self._route("GET", "/crm/customers/{customer}", self._customer),
            self._route("POST", "/vector/search", self._search),
            self._route("GET", "/market/quotes/{symbol}", self._quote),
            self._route("GET", "/portfolio/{account}/report", self._report),
            *(self._route("GET", f"/portfolio/parts/{part}/{{account}}", self._part(part)) for part in data.PARTS),
            Route("/world/stats", self._stats),
        ]
        self.app = StopsWithItsCaller(Starlette(routes=routes, lifespan=self._lifespan))

    def latency(self, endpoint: str, key: str) -> float:
        """Seconds that a request takes. `endpoint` is a name in LATENCIES."""
        return LATENCIES[endpoint].draw(endpoint, key, self._seed) / self._speed

    async def reached(self, endpoint: str, **counts: int) -> None:
        """Return once each count of `endpoint` is at least the given one. For tests in the same
        process.
        """
        while any(getattr(self.calls[endpoint], name) < count for name, count in counts.items()):
            await self._counted.wait()

    def _count(self) -> None:
        self._counted.set()
        self._counted = asyncio.Event()

    def _route(self, method: str, path: str, endpoint: Endpoint) -> Route:
        name = f"{method} {path}"
        calls = self.calls[name] = Calls()

        async def counted(request: Request) -> Response:
            calls.started += 1
            self._count()
            left = False
            try:
                return await _within_deadline(request, endpoint)
            except asyncio.CancelledError:
                left = True
                raise
            finally:
                calls.abandoned += left
                calls.ended += not left
                self._count()

        return Route(path, counted, methods=[method])

    async def _customer(self, request: Request) -> Response:
        key = request.path_params["customer"]
        await asyncio.sleep(self.latency("crm", key))
        return JSONResponse(data.customer(key, self._seed))

    async def _search(self, request: Request) -> Response:
        try:
            wanted = await request.json()
            query, top_k = wanted["query"], wanted.get("top_k", 3)
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            query, top_k = None, None
        if not isinstance(query, str) or not isinstance(top_k, int) or top_k < 1:
            return _problem(422, 'send {"query": "some text", "top_k": 3}')
        await asyncio.sleep(self.latency("vector", query))
        return JSONResponse(data.search(query, top_k))

    async def _quote(self, request: Request) -> Response:
        symbol = request.path_params["symbol"].upper()
        await asyncio.sleep(self.latency("market", symbol))
        return JSONResponse(data.quote(symbol, self._seed))

    def _part(self, part: str) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            account = request.path_params["account"]
            await asyncio.sleep(self.latency(part, account))
            return JSONResponse(data.part(part, account, self._seed))

        return endpoint

    async def _report(self, request: Request) -> Response:
        account = request.path_params["account"]
        host, port = request.scope["server"]
        parts: dict[str, Any] = {}
        failed: dict[str, str] = {}

        async def fetch(part: str) -> None:
            deadline = current_or_none()
            headers = {} if deadline is None else http_deadline.encode(deadline.remaining, time.time())
            client: httpx.AsyncClient = request.state.client
            try:
                url = f"http://{host}:{port}/portfolio/parts/{part}/{account}"
                response = (await cancelled_once(client.get(url, headers=headers))).raise_for_status()
                parts[part] = response.json()
            except httpx.HTTPError as error:
                failed[part] = type(error).__name__

        async def fetch_all() -> None:
            async with asyncio.TaskGroup() as group:
                for part in data.PARTS:
                    group.create_task(fetch(part))

        if current_or_none() is None:
            await fetch_all()
        else:
            deadline = current()
            reserve = min(ANSWER_RESERVE, deadline.remaining / 5)
            try:
                async with narrowed_at(deadline.absolute_deadline - reserve, "report"):
                    await fetch_all()
            except DeadlineSpent:
                pass  # answer with the parts that have arrived
        missing = [part for part in data.PARTS if part not in parts]
        return JSONResponse({"account": account, "parts": parts, "missing": missing, "complete": not missing})

    async def _stats(self, request: Request) -> Response:
        return JSONResponse({name: asdict(calls) for name, calls in self.calls.items()})

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[dict[str, Any]]:
        async with httpx.AsyncClient(timeout=None, limits=httpx.Limits(), trust_env=False) as client:
            yield {"client": client}


async def _within_deadline(request: Request, endpoint: Endpoint) -> Response:
    """Run an endpoint within the deadline of its request, if the request has one."""
    arrived = http_deadline.decode(request.headers, time.time())
    if arrived.remaining is None:
        return await endpoint(request)
    now = SYSTEM_CLOCK.monotonic()
    until = now + arrived.remaining
    context = DeadlineContext("demo-world", until, "internal", uuid.uuid4().hex, "", now)
    try:
        with entered(context):
            async with narrowed_at(until, request.url.path):
                return await endpoint(request)
    except DeadlineSpent as error:
        return _problem(504, str(error))


def _problem(status: int, what: str) -> Response:
    return JSONResponse({"error": what}, status_code=status)
