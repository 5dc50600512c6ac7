"""A full outage of one upstream: how many attempts each call makes, which of them could not have finished, and what ends too late.

The upstream is a process of its own that answers 503 after 20 ms, and every tenth request not at all. Runs of the whole mesh call
it through an idempotent HTTP tool, in a tier that allows two retries; the upstream counts what arrives, and reads from
`X-Request-Timeout-Ms` what the attempt had left. Beside it, as many calls by httpx in the usual loop: three attempts, each with a
fixed timeout, and a doubling backoff.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import grpc
import httpx

from benchmarks.mesh import meshed
from benchmarks.process import started
from benchmarks.report import Options, Result, bar, median, result
from benchmarks.upstreams.outage_server import SERVICE_S
from deadlinemesh.v1 import orchestrator_pb2, orchestrator_pb2_grpc

__all__ = ["retries"]

CALLS = 500
PER_S = 40.0
DEADLINE = 3.0
LATE = 0.02
"""Seconds after its deadline at which a call is counted as outliving it. On a busy machine one stall of a process makes some of
them, so the bar is on the median of the rounds."""
WORK = ("/deadlinemesh.v1.LlmProxyService/Generate", "/deadlinemesh.v1.ToolRunnerService/CallTool")


async def retries(options: Options) -> Result:
    """Measure both sides in turn."""
    rounds = options.repetitions or 5
    found: dict[str, list[dict[str, float]]] = {"mesh": [], "plain": []}
    for _ in range(rounds):
        found["mesh"].append(await _mesh())
        found["plain"].append(await _plain())
    figures = {
        side: {
            name: {
                "median": round(median([one[name] for one in each]), 3),
                "least": round(min(one[name] for one in each), 3),
                "most": round(max(one[name] for one in each), 3),
            }
            for name in each[0]
        }
        for side, each in found.items()
    }
    mesh = figures["mesh"]
    bars = [
        bar("attempts per call, median", mesh["attempts_per_call"]["median"], 1.1),
        bar("attempts that could not finish, in the worst round", mesh["hopeless_attempts"]["most"], 0),
        bar("the last end of any call after its deadline, median, ms", mesh["latest_ms"]["median"], LATE * 1000),
        bar("requests left open afterwards, in the worst round", mesh["left_open"]["most"], 0),
    ]
    return result("retries", rounds, figures, bars)


async def _mesh() -> dict[str, float]:
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(started("benchmarks.upstreams.outage_server"))
        url = f"http://127.0.0.1:{upstream['port']}"
        mesh = await stack.enter_async_context(meshed(_policy(url)))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(mesh.target))
        stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
        request = orchestrator_pb2.RunRequest(prompt="Tell me the status of the upstream", tools=["upstream_status"])
        tool_calls = 0

        async def call(late: list[float]) -> None:
            nonlocal tool_calls
            async for event in stub.Run(request, timeout=DEADLINE, metadata=mesh.metadata):
                if event.HasField("finished"):
                    tool_calls += event.finished.usage.tool_calls

        late = await _load(call)
        stats = await _stats(url)
        ended = [
            one["ended_at"] - one["deadline_at"]
            for hop in ("llm-proxy", "tool-runner")
            for one in mesh.events(hop, "CallEnded")
            if one["method"] in WORK
        ]
        runs = [one["ended_at"] - one["due_at"] for one in mesh.events("orchestrator", "RunEnded")]
        if tool_calls != CALLS or len(runs) != CALLS:
            raise RuntimeError(f"{CALLS} runs made {tool_calls} tool calls, and {len(runs)} ended")
        return _figures(stats, [*late, *ended, *runs])


async def _plain() -> dict[str, float]:
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(started("benchmarks.upstreams.outage_server"))
        url = f"http://127.0.0.1:{upstream['port']}"
        limits = httpx.Limits(max_connections=None)
        client = await stack.enter_async_context(httpx.AsyncClient(timeout=DEADLINE, limits=limits))

        async def call(late: list[float]) -> None:
            deadline = time.monotonic() + DEADLINE
            for attempt in range(3):
                left = f"{(deadline - time.monotonic()) * 1000:.0f}"
                try:
                    answer = await client.get(f"{url}/status", headers={"X-Request-Timeout-Ms": left})
                    if answer.is_success:
                        break
                except httpx.HTTPError:
                    pass
                await asyncio.sleep(0.1 * 2**attempt)
            late.append(time.monotonic() - deadline)

        late = await _load(call)
        return _figures(await _stats(url), late)


async def _load(call: Callable[[list[float]], Coroutine[Any, Any, None]]) -> list[float]:
    """CALLS calls, PER_S a second, whether or not earlier ones have ended; what each adds to the list, when all have ended."""
    late: list[float] = []
    async with asyncio.TaskGroup() as group:
        began = time.monotonic()
        for number in range(CALLS):
            await asyncio.sleep(max(0.0, began + number / PER_S - time.monotonic()))
            group.create_task(call(late))
    await asyncio.sleep(0.5)  # until the last events are written and the last connections closed
    return late


async def _stats(url: str) -> dict[str, Any]:
    async with httpx.AsyncClient() as client:
        stats: dict[str, Any] = (await client.get(f"{url}/stats")).json()
    return stats


def _figures(stats: dict[str, Any], late: list[float]) -> dict[str, float]:
    left = [one["remaining_ms"] for one in stats["records"]]
    return {
        "attempts_per_call": len(left) / CALLS,
        "hopeless_attempts": sum(one < SERVICE_S * 1000 for one in left),
        "late_calls": sum(one > LATE for one in late),
        "latest_ms": max(0.0, *late) * 1000,
        "left_open": stats["open"],
    }


def _policy(url: str) -> dict[str, Any]:
    return {
        "tiers": {"enterprise": {"run_budget": "300s", "iterations": 3, "tool_retries": 2}},
        "models": {"quick": {"provider": "scripted", "slots": 1000, "first_token": 0, "per_token": 0}},
        "tools": {
            "connections_per_host": 1000,
            "http": {
                "upstream_status": {
                    "url": f"{url}/status",
                    "description": "Tell the status of the upstream.",
                    "idempotent": True,
                    "internal": True,
                }
            },
        },
    }
