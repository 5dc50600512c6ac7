from __future__ import annotations

import asyncio
import math
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator

import httpx
import pytest

from deadlinemesh.demo_world import LATENCIES, DemoWorld, serving
from deadlinemesh.transport.http_deadline import TIMEOUT_HEADER, decode, encode

QUOTES = "GET /market/quotes/{symbol}"
REPORT = "GET /portfolio/{account}/report"
PARTS = [f"GET /portfolio/parts/{part}/{{account}}" for part in ("positions", "cash", "risk", "fees", "news")]

NEVER = 1e-9
"""A speed at which nothing ends by itself within a test."""


@pytest.fixture
async def fast() -> AsyncIterator[httpx.AsyncClient]:
    """A client of a world that answers at once."""
    async with serving(DemoWorld(speed=math.inf)) as url, httpx.AsyncClient(base_url=url, timeout=None) as client:
        yield client


PATIENCE = 20.0
"""Seconds after which what should have happened long ago has failed to."""


async def reached(world: DemoWorld, endpoint: str, **counts: int) -> None:
    async with asyncio.timeout(PATIENCE):
        await world.reached(endpoint, **counts)


async def test_each_upstream_answers_what_its_caller_can_use(fast: httpx.AsyncClient) -> None:
    customer = (await fast.get("/crm/customers/northwind")).json()
    assert customer["id"] == "northwind"
    assert {"name", "segment", "account_manager", "open_tickets", "account"} <= set(customer)

    found = (
        await fast.post("/vector/search", json={"query": "may I return goods and get a refund", "top_k": 2})
    ).json()
    assert found["matches"][0]["id"] == "refunds"
    assert len(found["matches"]) <= 2

    quote = (await fast.get("/market/quotes/msft")).json()
    assert quote["symbol"] == "MSFT"
    assert quote["price"] > 0

    report = (await fast.get(f"/portfolio/{customer['account']}/report")).json()
    assert report["complete"]
    assert list(report["missing"]) == []
    assert set(report["parts"]) == {"positions", "cash", "risk", "fees", "news"}


async def test_the_same_seed_and_request_give_the_same_answer(fast: httpx.AsyncClient) -> None:
    assert (await fast.get("/market/quotes/ACME")).json() == (await fast.get("/market/quotes/ACME")).json()
    assert (await fast.get("/market/quotes/ACME")).json() != (await fast.get("/market/quotes/HLDN")).json()


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"query": 3}', b'{"query": "x", "top_k": 0}', b'{"query": "x", "top_k": "y"}', b"[" * 9999]
)
async def test_a_search_that_cannot_be_read_is_refused_with_what_would_be_right(
    fast: httpx.AsyncClient, body: bytes
) -> None:
    refused = await fast.post("/vector/search", content=body)
    assert refused.status_code == 422
    assert refused.json()["error"] == 'send {"query": "some text", "top_k": 3}'


def test_latencies_are_seeded_by_endpoint_and_request() -> None:
    world, same, other = DemoWorld(seed=1), DemoWorld(seed=1), DemoWorld(seed=2)
    assert world.latency("market", "ACME") == same.latency("market", "ACME")
    assert world.latency("market", "ACME") != other.latency("market", "ACME")
    assert world.latency("market", "ACME") != world.latency("market", "HLDN")


def test_speed_divides_latencies() -> None:
    assert DemoWorld(speed=4).latency("crm", "x") == DemoWorld().latency("crm", "x") / 4
    with pytest.raises(ValueError, match="greater than 0"):
        DemoWorld(speed=0)


def test_the_financial_data_provider_has_the_articles_tail() -> None:
    drawn = sorted(LATENCIES["market"].draw("market", f"S{number}", seed=0) for number in range(20_000))
    assert statistics.median(drawn) == pytest.approx(1.2, rel=0.05)
    assert drawn[int(len(drawn) * 0.99)] == pytest.approx(12.0, rel=0.1)


async def test_a_caller_that_leaves_stops_its_call() -> None:
    world = DemoWorld(speed=NEVER)
    async with serving(world) as url, httpx.AsyncClient(base_url=url, timeout=None) as client:
        calling = asyncio.create_task(client.get("/market/quotes/ACME"))
        await reached(world, QUOTES, started=1)
        calling.cancel()
        await asyncio.wait([calling])
        await reached(world, QUOTES, abandoned=1)
        seen = (await client.get("/world/stats")).json()
    assert seen[QUOTES] == {"started": 1, "ended": 0, "abandoned": 1}


async def test_a_caller_that_leaves_stops_the_whole_fan_out() -> None:
    world = DemoWorld(speed=NEVER)
    async with serving(world) as url, httpx.AsyncClient(base_url=url, timeout=None) as client:
        calling = asyncio.create_task(client.get("/portfolio/PF-1/report"))
        for part in PARTS:
            await reached(world, part, started=1)
        calling.cancel()
        await asyncio.wait([calling])
        for endpoint in (REPORT, *PARTS):
            await reached(world, endpoint, abandoned=1)


async def test_a_report_is_partial_but_in_time_when_its_deadline_is_near() -> None:
    world = DemoWorld(speed=NEVER)
    async with serving(world) as url, httpx.AsyncClient(base_url=url, timeout=None) as client:
        started = time.monotonic()
        answer = await client.get("/portfolio/PF-1/report", headers=encode(0.3, time.time()))
        assert time.monotonic() - started < 0.3
        assert answer.json() == {
            "account": "PF-1",
            "parts": {},
            "missing": ["positions", "cash", "risk", "fees", "news"],
            "complete": False,
        }
        assert [world.calls[part].started for part in PARTS] == [1] * 5


async def test_the_parts_are_told_a_deadline_that_is_earlier_than_the_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[float | None] = []

    def watched(headers: object, wall_now: float) -> object:
        decoded = decode(headers, wall_now)  # type: ignore[arg-type]
        told.append(decoded.remaining)
        return decoded

    monkeypatch.setattr("deadlinemesh.demo_world.world.http_deadline.decode", watched)
    async with serving(DemoWorld(speed=math.inf)) as url, httpx.AsyncClient(base_url=url) as client:
        answer = await client.get("/portfolio/PF-1/report", headers={TIMEOUT_HEADER: "20000"})
    assert answer.json()["complete"]
    report, *parts = told
    assert report == 20.0
    assert len(parts) == 5
    assert all(part is not None and 15 < part <= 19.95 for part in parts)


async def test_a_service_that_honours_the_deadline_stops_by_itself() -> None:
    async with serving(DemoWorld(speed=NEVER)) as url, httpx.AsyncClient(base_url=url, timeout=None) as client:
        answer = await client.get("/crm/customers/acme", headers={TIMEOUT_HEADER: "10"})
    assert answer.status_code == 504


async def test_it_runs_as_a_process_that_says_where_it_is_and_ends_cleanly_when_told() -> None:
    command = ("-m", "deadlinemesh.demo_world", "--port", "0", "--speed", str(NEVER))
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        line = (await process.stdout.readline()).decode()
        assert line.startswith("demo world: http://127.0.0.1:")
        async with httpx.AsyncClient(base_url=line.split()[-1], timeout=None) as client:
            calling = asyncio.create_task(client.get("/market/quotes/ACME"))
            while (await client.get("/world/stats")).json()[QUOTES]["started"] < 1:
                pass
            process.send_signal(signal.SIGTERM)  # a call that would never end does not keep it
            out, err = await process.communicate()
            assert (await calling).status_code == 503
    finally:
        if process.returncode is None:
            process.kill()
    assert (process.returncode, out, err) == (0, b"", b"")
