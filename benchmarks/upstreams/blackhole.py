"""A provider that accepts and never answers, with a fallback model configured.

Runs of the whole mesh have deadlines from 2 to 4 s. Half of them fall back to a model that answers at once, half to one that
would speak for longer than there is time, so that the end is the internal deadline's. Nothing is known of the hole, the worst case:
each run gives it 80% of its time. Beside it, OpenAI's SDK with the same deadline as its `timeout=` and its default retries.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import AsyncExitStack
from typing import Any

import grpc
import httpx
import openai

from benchmarks.mesh import meshed
from benchmarks.process import started
from benchmarks.report import Options, Result, bar, median, result, spread
from deadlinemesh.v1 import orchestrator_pb2, orchestrator_pb2_grpc

__all__ = ["blackhole"]

RUNS = 20
SHORTEST, LONGEST = 2.0, 4.0


async def blackhole(options: Options) -> Result:
    """Measure both sides in turn."""
    rounds = options.repetitions or 5
    mesh: list[dict[str, Any]] = []
    plain: list[list[float]] = []
    for number in range(rounds):
        draw = random.Random(f"{options.seed} {number}")
        timeouts = [draw.uniform(SHORTEST, LONGEST) for _ in range(RUNS)]
        mesh.append(await _mesh(timeouts))
        plain.append(await _plain(timeouts))
    late = [ms for one in mesh for ms in one["late_ms"]]
    reached = sum(one["reached"] for one in mesh)
    figures = {
        "mesh": {
            "late": spread(late),
            "latest_ms_median_of_rounds": round(median([max(one["late_ms"]) for one in mesh]), 3),
            "runs": len(late),
            "fallback_reached": reached,
            "answered": sum(one["answered"] for one in mesh),
            "left_open": sum(one["open"] for one in mesh),
        },
        "plain": {
            "late": spread([ms for one in plain for ms in one]),
            "late_ms_median_of_rounds": round(median([median(one) for one in plain]), 3),
        },
    }
    bars = [
        bar(
            "mesh: a run's end after its internal deadline, latest of a round, median, ms",
            figures["mesh"]["latest_ms_median_of_rounds"],
            20.0,
        ),
        bar("mesh: runs that reached the fallback", reached, rounds * RUNS, at_least=True),
        bar("mesh: requests left open at the hole", figures["mesh"]["left_open"], 0),
    ]
    return result("blackhole", rounds, figures, bars)


async def _mesh(timeouts: list[float]) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        hole = await stack.enter_async_context(started("benchmarks.upstreams.outage_server", "--hangs-every", "1"))
        url = f"http://127.0.0.1:{hole['port']}"
        mesh = await stack.enter_async_context(meshed(_policy(url)))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(mesh.target))
        stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)

        async def run(number: int, timeout: float) -> bool:
            request = orchestrator_pb2.RunRequest(prompt="What is 2+2?", model=("brief", "talkative")[number % 2])
            call = stub.Run(request, timeout=timeout, metadata=mesh.metadata)
            return any(event.finished.answer for event in [event async for event in call])

        answered = await asyncio.gather(*(run(number, timeout) for number, timeout in enumerate(timeouts)))
        await asyncio.sleep(0.5)
        async with httpx.AsyncClient() as client:
            left_open = (await client.get(f"{url}/stats")).json()["open"]
        ended = mesh.events("orchestrator", "RunEnded")
        return {
            "late_ms": [max(0.0, one["ended_at"] - one["due_at"]) * 1000 for one in ended],
            "reached": len({one["run_id"] for one in mesh.events("orchestrator", "FellBack")}),
            "answered": sum(answered),
            "open": left_open,
        }


async def _plain(timeouts: list[float]) -> list[float]:
    """Milliseconds from each deadline to the SDK's giving up."""
    async with AsyncExitStack() as stack:
        hole = await stack.enter_async_context(started("benchmarks.upstreams.outage_server", "--hangs-every", "1"))

        async def call(timeout: float) -> float:
            began = time.monotonic()
            async with openai.AsyncOpenAI(
                base_url=f"http://127.0.0.1:{hole['port']}/v1", api_key="none", timeout=timeout
            ) as client:
                try:
                    await client.chat.completions.create(model="x", messages=[{"role": "user", "content": "2+2?"}])
                except openai.APITimeoutError:
                    return (time.monotonic() - began - timeout) * 1000
            raise RuntimeError("a black hole answered")

        return list(await asyncio.gather(*map(call, timeouts)))


def _policy(url: str) -> dict[str, Any]:
    hole = {"provider": "openai", "base_url": f"{url}/v1", "model": "x", "api_key_env": "", "slots": 1000}
    return {
        "tiers": {"free": {"run_budget": "300s", "iterations": 2, "tool_retries": 0}},
        "models": {
            "brief": {**hole, "fallback": "at_once"},
            "talkative": {**hole, "fallback": "for_long"},
            "at_once": {"provider": "scripted", "slots": 1000, "first_token": "20ms", "per_token": "2ms"},
            "for_long": {"provider": "scripted", "slots": 1000, "first_token": "20ms", "per_token": "1s"},
        },
    }
