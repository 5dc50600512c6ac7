"""The health service."""

from __future__ import annotations

import asyncio
from typing import Any

from grpc_health.v1 import health_pb2

from deadlinemesh.transport.health import Health

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
NO_CONTEXT: Any = None


def watch(health: Health, service: str = "s") -> Any:
    return aiter(health.Watch(health_pb2.HealthCheckRequest(service=service), NO_CONTEXT))


async def test_watcher_is_told_each_change() -> None:
    health = Health()
    health.tell("s", True)
    watching = watch(health)
    assert (await anext(watching)).status == SERVING
    waiting = asyncio.ensure_future(anext(watching))
    await asyncio.sleep(0)
    health.tell("other", True)
    await asyncio.sleep(0)
    assert not waiting.done()
    health.tell("s", False)
    assert (await waiting).status == NOT_SERVING


async def test_slow_watcher_is_told_the_latest() -> None:
    health = Health()
    health.tell("s", True)
    watching = watch(health)
    await anext(watching)
    for serving in (False, True, False):
        health.tell("s", serving)
    assert (await anext(watching)).status == NOT_SERVING


async def test_unknown_service_may_come_later() -> None:
    health = Health()
    watching = watch(health)
    assert (await anext(watching)).status == UNKNOWN
    waiting = asyncio.ensure_future(anext(watching))
    await asyncio.sleep(0)
    health.tell("s", True)
    assert (await waiting).status == SERVING


async def test_list_tells_every_service() -> None:
    health = Health()
    health.tell("a", True)
    health.tell("b", False)
    listed = await health.List(None, NO_CONTEXT)
    assert {name: one.status for name, one in listed.statuses.items()} == {"a": SERVING, "b": NOT_SERVING}
