"""Replies of 1 MB that nobody reads: when they end, whether they are counted, and whether their memory comes back.

CALLS unread replies at a time, unary and streamed, with a deadline of the client's and without one, where the tier's budget is the
deadline. Twenty tenants make them, each on a connection of its own with a receive window of 0. The figure is the time from a call's
deadline to the frame with which the server ends its stream. Calls that were refused are no unread replies, and break a bar of their
own.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc

from benchmarks.hostile.large_tool import REPLY_BYTES
from benchmarks.hostile.raw_peer import RawPeer, Stream
from benchmarks.hostile.world import rss_mb
from benchmarks.mesh import Mesh, meshed
from benchmarks.report import Options, Result, bar, result, spread
from deadlinemesh.v1 import orchestrator_pb2, orchestrator_pb2_grpc

__all__ = ["unread"]

T = TypeVar("T")

CALLS = 400
TENANTS = tuple(f"tenant-{number}" for number in range(20))
PER_S = 100.0
"""So many calls are sent a second, so that none waits to be taken up."""
TIER_S = 8.0
CLIENT_S = 6.0
NEVER_S = 3.0
"""Seconds after its deadline when a call is taken never to end."""
SETTLED_WITHIN_S = 10.0
"""Seconds for memory to come back, and for what has ended to be told."""
SAMPLE_S = 0.25
REFUSED_BEFORE_S = 1.0
"""A call that ends so long before its deadline was refused."""
LATE_MS = 250.0
KEPT_PERCENT = 10.0
_SERVICE = "/deadlinemesh.v1.OrchestratorService"


@dataclass(frozen=True, slots=True)
class _Reply:
    """An unread reply: of which method, and whether its client names a deadline."""

    method: str
    timeout: float | None

    @property
    def name(self) -> str:
        shape = "streamed" if self.method == "Run" else "unary"
        return f"{shape}, {'no' if self.timeout is None else 'own'} deadline"


REPLIES = tuple(_Reply(method, timeout) for method in ("GetRun", "Run") for timeout in (CLIENT_S, None))


async def unread(options: Options) -> Result:
    """Measure each kind of reply, `repetitions` times CALLS of them."""
    rounds = options.repetitions or 1
    figures, bars = {}, []
    async with meshed(_policy(), TENANTS) as mesh:
        requests = [await _large_run(mesh, tenant) for tenant in TENANTS]
        pid = mesh.pids["orchestrator"]
        await _round(mesh, REPLIES[0], requests, len(TENANTS), rss_mb(pid))
        at_first = rss_mb(pid)  # only now, because the first large replies leave more behind than later ones
        for reply in REPLIES:
            measured = figures[reply.name] = await _round(mesh, reply, requests, CALLS * rounds, rss_mb(pid))
            held = measured["calls"] - measured["refused"]
            bars += [
                bar(f"{reply.name}: unread", held, CALLS * rounds, at_least=True),
                bar(f"{reply.name}: end after the deadline, max ms", measured["late"]["max_ms"], LATE_MS),
                bar(f"{reply.name}: counted, of {held}", measured["counted"], held, at_least=True),
                bar(f"{reply.name}: memory kept, %", measured["memory_kept_percent"], KEPT_PERCENT),
            ]
        in_all = (rss_mb(pid) / at_first - 1) * 100
    return result("unread", rounds, {"replies": figures, "memory_kept_in_all_percent": in_all}, bars)


def _policy() -> dict[str, Any]:
    return {
        "tiers": {"short": {"run_budget": TIER_S, "iterations": 3}},
        "models": {
            "fluent": {
                "provider": "scripted",
                "slots": 100,
                "first_token": 0,
                "per_token": 0,
                "longest_result": REPLY_BYTES + 1000,
            }
        },
        "tools": {"modules": ["benchmarks.hostile.large_tool"]},
        # By its default an orchestrator takes no more such replies than fit its memory: here it is to take all.
        "admission": {"memory_bytes": 4 * 1024**3, "memory_part": 0.9},
    }


async def _large_run(mesh: Mesh, tenant: str) -> dict[str, bytes]:
    """Have a tenant's run end, all of whose events and history have REPLY_BYTES; the requests for them, by method."""
    async with grpc.aio.insecure_channel(mesh.target) as channel:
        stub: Any = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
        run = orchestrator_pb2.RunRequest(prompt="Fetch the quarterly report", request_id=f"large-{tenant}")
        events = [event async for event in stub.Run(run, metadata=mesh.metadata_of[tenant])]
        get = orchestrator_pb2.GetRunRequest(run_id=events[0].started.run_id)
        history = await stub.GetRun(get, metadata=mesh.metadata_of[tenant])
    if min(sum(event.ByteSize() for event in events), history.ByteSize()) < REPLY_BYTES:
        raise RuntimeError(f"the run of {tenant} is not large: {events[-1]}")
    return {"GetRun": get.SerializeToString(), "Run": run.SerializeToString()}


async def _round(
    mesh: Mesh, reply: _Reply, requests: Sequence[dict[str, bytes]], calls: int, before: float
) -> dict[str, Any]:
    """Make so many calls. `before` is the memory that there was before them."""
    pid = mesh.pids["orchestrator"]
    told = len(mesh.events("orchestrator", *_COUNTED))
    port = int(mesh.target.rpartition(":")[2])
    async with AsyncExitStack() as stack:
        peers = []
        for _ in TENANTS:
            peers.append(await RawPeer.connect(port, window=0))
            stack.push_async_callback(peers[-1].close)
        held: list[tuple[Stream, float]] = []
        began = time.monotonic()
        for number in range(calls):
            await asyncio.sleep(max(0.0, began + number / PER_S - time.monotonic()))
            which = number % len(TENANTS)
            metadata = mesh.metadata_of[TENANTS[which]]
            if reply.timeout is not None:
                metadata = (*metadata, ("grpc-timeout", f"{reply.timeout * 1000:.0f}m"))
            stream = peers[which].call(f"{_SERVICE}/{reply.method}", metadata, requests[which][reply.method])
            held.append((stream, time.monotonic() + (reply.timeout or TIER_S)))
        most = rss_mb(pid)
        late = await asyncio.gather(*(_late(*one) for one in held))
        in_time = [max(0.0, seconds) * 1000 for seconds in late if seconds > -REFUSED_BEFORE_S]
        after = await _settled(lambda: rss_mb(pid), lambda now: now <= before * (1 + KEPT_PERCENT / 100))
        counted = await _settled(lambda: _counted(mesh, told), lambda now: now >= len(in_time))
    return {
        "calls": calls,
        "refused": calls - len(in_time),
        "never_ended": sum(seconds == NEVER_S for seconds in late),
        "late": spread(in_time or [0.0]),
        "counted": counted,
        "statuses": dict(Counter(str(stream.status) for stream, _ in held)),
        "memory_mb": {"before": round(before, 1), "held": round(most, 1), "after": round(after, 1)},
        "memory_kept_percent": (after / before - 1) * 100,
    }


_COUNTED = ("CallEnded", "OrphanReported")
"""The events that tell of an unread reply: an orphan, or a call that did not end well."""


def _counted(mesh: Mesh, told: int) -> int:
    """How many unread replies the orchestrator has told of since it had told `told` events."""
    events = mesh.events("orchestrator", *_COUNTED)[told:]
    return sum(event["event"] != "CallEnded" or event["code"] != "OK" for event in events)


async def _late(stream: Stream, deadline: float) -> float:
    """Seconds from its deadline to its end, or NEVER_S."""
    try:
        async with asyncio.timeout_at(asyncio.get_running_loop().time() + deadline + NEVER_S - time.monotonic()):
            await stream.ended()
    except TimeoutError:
        return NEVER_S
    assert stream.ended_at is not None
    return stream.ended_at - deadline


async def _settled(measure: Callable[[], T], is_right: Callable[[T], bool]) -> T:
    """The first measurement that is right, or the one after SETTLED_WITHIN_S."""
    until = time.monotonic() + SETTLED_WITHIN_S
    while not is_right(now := measure()) and time.monotonic() < until:  # noqa: ASYNC110  # another process's facts
        await asyncio.sleep(SAMPLE_S)
    return now
