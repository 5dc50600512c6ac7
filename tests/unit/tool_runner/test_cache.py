"""Kept results: whose they are, how long they stay, and that neither reading nor writing them costs anybody what is not theirs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import Any

import pytest
from tests.support.virtual import in_virtual_time, now, with_seconds

from deadlinemesh.deadline import Background, Scopes, current
from deadlinemesh.deadline.scope import current_scope
from deadlinemesh.errors import Cause
from deadlinemesh.policy import ToolsPolicy
from deadlinemesh.telemetry import CacheUsed, CacheWritten, CountingSink, Telemetry
from deadlinemesh.testing import virtual_time
from deadlinemesh.tool_runner import ToolError, tool
from deadlinemesh.tool_runner.cache import MOST_WRITES, CacheKey, KeptResults, MemoryCache, ResultCache
from deadlinemesh.tool_runner.kinds.python import PythonTool
from deadlinemesh.tool_runner.outcome import Call, Tool
from deadlinemesh.tool_runner.registry import Registry
from deadlinemesh.tool_runner.service import ToolService
from deadlinemesh.tool_runner.tool import definition_of
from deadlinemesh.vocabulary import Phase, ToolFinished, ToolResult, ToolSpec, ToolStarted, ToolStatus


class Hop:
    """A tool-runner with tools that count how often they ran, and a store."""

    def __init__(self, cache: ResultCache | None = None, **tools_policy: Any) -> None:
        self.ran: list[str] = []
        self.memory = MemoryCache(1_000_000, virtual_time.clock())
        self.sink = CountingSink()
        self.scopes = Scopes("tool-runner")
        self.kept = KeptResults(
            self.memory if cache is None else cache,
            Background(self.scopes),
            ToolsPolicy(**tools_policy),
            Telemetry([self.sink]),
            "tool-runner",
        )
        tools = {}
        for function in self._functions():
            definition = definition_of(function)
            assert definition is not None
            tools[definition.spec.name] = PythonTool(definition)
        registry = Registry(tools, {"acme": (), "bolt": ()})
        self.service = ToolService(registry, 1_000_000, virtual_time.clock(), self.kept)

    def _functions(self) -> tuple[Callable[..., Any], ...]:
        ran = self.ran

        @tool(idempotent=True, cache_for=60.0)
        async def look(word: str = "", number: float = 0) -> str:
            """Look."""
            ran.append("look")
            await asyncio.sleep(1.0)
            return f"{current().tenant_id} saw {word}"

        @tool(idempotent=True, cache_for=60.0)
        async def fail() -> str:
            """Fail."""
            ran.append("fail")
            raise ToolError("no")

        @tool(idempotent=True)
        async def fresh() -> str:
            """Look afresh."""
            ran.append("fresh")
            return "fresh"

        return look, fail, fresh

    async def call(
        self, name: str, arguments: str = "{}", *, tenant_id: str = "acme", run_id: str = "run-1", seconds: float = 30.0
    ) -> ToolFinished:
        async def collect() -> ToolFinished:
            async with aclosing(self.service.call(name, arguments)) as events:
                self.events = [event async for event in events]
            last = self.events[-1]
            assert isinstance(last, ToolFinished)
            return last

        return await self.scopes.open(with_seconds(seconds, tenant_id=tenant_id, run_id=run_id)).run(collect())

    def written(self) -> list[CacheWritten]:
        return [event for event in self.sink.events if isinstance(event, CacheWritten)]

    def used(self) -> list[CacheUsed]:
        return [event for event in self.sink.events if isinstance(event, CacheUsed)]


class Store(MemoryCache):
    """A remote store: each operation takes its time, or raises; a write notes in whose name it was made."""

    def __init__(self, *, reading: float = 0.0, writing: float = 0.0, error: BaseException | None = None) -> None:
        super().__init__(1_000_000, virtual_time.clock())
        self.reading, self.writing, self.error = reading, writing, error
        self.writers: list[tuple[str, str, float]] = []
        self.stopped: list[tuple[float, Cause | None]] = []

    async def get(self, key: CacheKey) -> str | None:
        await asyncio.sleep(self.reading)
        if self.error is not None:
            raise self.error
        return await super().get(key)

    async def put(self, key: CacheKey, content: str, seconds: float) -> None:
        try:
            await asyncio.sleep(self.writing)
        except asyncio.CancelledError:
            scope = current_scope()
            self.stopped.append((now(), None if scope is None else scope.cause))
            raise
        if self.error is not None:
            raise self.error
        self.writers.append((current().tenant_id, current().run_id, now()))
        await super().put(key, content, seconds)


@in_virtual_time
async def test_a_second_call_with_the_same_arguments_in_any_order_gets_the_kept_result_at_once() -> None:
    hop = Hop()
    first = await hop.call("look", '{"word": "x", "number": 1}')
    began_at = now()
    second = await hop.call("look", '{ "number":1, "word":"x" }')
    assert second.result == first.result
    assert (hop.ran, now() - began_at) == (["look"], 0.0)
    assert not any(isinstance(event, ToolStarted) for event in hop.events), "nothing was started"
    assert [event.hit for event in hop.used()] == [False, True]


@in_virtual_time
async def test_other_arguments_are_another_result() -> None:
    hop = Hop()
    await hop.call("look", '{"word": "x"}')
    assert (await hop.call("look", '{"word": "y"}')).result.content == "acme saw y"


@in_virtual_time
async def test_no_tenant_is_given_what_another_caused() -> None:
    hop = Hop()
    await hop.call("look", tenant_id="acme")
    assert (await hop.call("look", tenant_id="bolt")).result.content == "bolt saw "
    assert (await hop.call("look", tenant_id="acme")).result.content == "acme saw "
    assert hop.ran == ["look", "look"]


@in_virtual_time
async def test_a_result_is_kept_for_its_time_and_no_longer() -> None:
    hop = Hop()
    await hop.call("look")
    kept_at = now()
    await asyncio.sleep(kept_at + 59.9 - now())
    await hop.call("look")
    assert hop.ran == ["look"]
    await asyncio.sleep(kept_at + 60.0 - now())
    await hop.call("look")
    assert hop.ran == ["look", "look"]


@in_virtual_time
async def test_failures_wrong_arguments_and_tools_that_did_not_ask_for_it_are_not_kept() -> None:
    hop = Hop()
    for _ in range(2):
        await hop.call("fail")
        await hop.call("fresh")
        await hop.call("look", '{"wrong": 1}')
    assert hop.ran == ["fail", "fresh"] * 2
    assert len(hop.memory) == 0


class Deep(Tool):
    spec = ToolSpec("deep", "Takes anything.", {"type": "object"}, idempotent=True)
    cache_for = 60.0

    async def run(self, arguments: Mapping[str, Any], call: Call) -> ToolResult:
        raise NotImplementedError


@in_virtual_time
async def test_arguments_that_are_nested_too_deeply_to_be_written_are_kept_nowhere_and_fail_no_call() -> None:
    hop = Hop()
    tool = Deep()
    deep: dict[str, Any] = {}
    for _ in range(2000):
        deep = {"a": deep}

    async def keep_and_find() -> ToolResult | None:
        hop.kept.keep(tool, deep, ToolResult(ToolStatus.OK, "found"))
        return await hop.kept.find(tool, deep)

    assert await hop.scopes.open(with_seconds(30.0)).run(keep_and_find()) is None
    assert len(hop.memory) == 0


@in_virtual_time
async def test_a_slow_store_is_given_up_in_favour_of_the_tool() -> None:
    hop = Hop(Store(reading=3600.0))
    finished = await hop.call("look")
    assert finished.result.status is ToolStatus.OK
    assert now() == pytest.approx(0.1 + 1.0)
    assert finished.spend is not None
    assert finished.spend.phases == {Phase.TOOL_QUEUE: pytest.approx(0.1), Phase.TOOL_CALL: pytest.approx(1.0)}
    assert [(event.hit, event.problem) for event in hop.used()] == [(False, "slow")]


@in_virtual_time
async def test_where_little_time_remains_a_store_gets_a_small_share_of_it() -> None:
    hop = Hop(Store(reading=3600.0), cache_read_budget=30.0)
    await hop.call("look", seconds=2.0)
    assert now() == pytest.approx(2.0 * 0.05 + 1.0)


@in_virtual_time
async def test_a_store_that_holds_on_to_its_cancellation_does_not_hold_the_call() -> None:
    class Stubborn(Store):
        async def get(self, key: CacheKey) -> str | None:
            end = now() + 0.5
            while now() < end:
                try:
                    await asyncio.sleep(end - now())
                except asyncio.CancelledError:
                    continue
            return "too late"

    hop = Hop(Stubborn())
    assert (await hop.call("look")).result.content == "acme saw "
    assert now() == pytest.approx(1.1)


@pytest.mark.parametrize("error", [ConnectionError("refused"), asyncio.CancelledError()], ids=repr)
@in_virtual_time
async def test_a_store_that_fails_fails_no_call(error: BaseException) -> None:
    hop = Hop(Store(error=error))
    assert (await hop.call("look")).result.status is ToolStatus.OK
    await hop.scopes.emptied()
    assert [event.problem for event in hop.used()] == ["failed"]
    assert [event.problem for event in hop.written()] == ["failed"]


@in_virtual_time
async def test_a_slow_write_outlives_its_run_and_stays_its_owners_while_another_runs() -> None:
    store = Store(writing=3.0)
    hop = Hop(store)
    await hop.call("look", tenant_id="acme", run_id="run-a", seconds=1.5)
    assert now() == 1.0, "the call does not wait for the write"
    other = await hop.call("look", tenant_id="bolt", run_id="run-b")
    assert other.spend is not None
    assert other.spend.phases == {Phase.TOOL_CALL: 1.0}, "nothing of the write is charged to the other"
    assert other.spend.elapsed == 1.0
    await hop.scopes.emptied()
    assert store.writers == [("acme", "run-a", 4.0), ("bolt", "run-b", 5.0)]
    assert [(event.tenant_id, event.run_id, event.seconds, event.problem) for event in hop.written()] == [
        ("acme", "run-a", 3.0, ""),
        ("bolt", "run-b", 3.0, ""),
    ]


@in_virtual_time
async def test_a_write_is_not_cancelled_with_the_call_that_caused_it() -> None:
    store = Store(writing=3.0)
    hop = Hop(store)
    scope = hop.scopes.open(with_seconds(30.0))

    async def call_and_wait() -> None:
        async with aclosing(hop.service.call("look", "{}")) as events:
            async for event in events:
                if isinstance(event, ToolFinished):
                    await asyncio.sleep(3600.0)  # the result is never read

    call = asyncio.create_task(scope.run(call_and_wait()))
    await asyncio.sleep(2.0)
    call.cancel()
    await asyncio.wait([call])
    assert len(hop.scopes) == 1
    await hop.scopes.emptied()
    assert store.writers == [("acme", "run-1", 4.0)]


@in_virtual_time
async def test_a_write_that_hangs_ends_at_its_own_deadline() -> None:
    store = Store(writing=3600.0)
    hop = Hop(store, cache_write_budget=5.0)
    await hop.call("look", seconds=1.5)
    await hop.scopes.emptied()
    assert store.stopped == [(6.0, Cause.DEADLINE_SPENT)]
    assert [(event.seconds, event.problem) for event in hop.written()] == [(5.0, "DEADLINE_SPENT")]


@in_virtual_time
async def test_a_drain_waits_for_writes() -> None:
    store = Store(writing=3.0)
    hop = Hop(store)
    await hop.call("look")
    assert len(hop.scopes) == 1
    await hop.scopes.emptied()
    assert now() == 4.0
    assert len(store) == 1


@in_virtual_time
async def test_a_drain_that_is_over_ends_writes_with_its_own_cause() -> None:
    hop = Hop(Store(writing=3600.0))
    await hop.call("look")
    await asyncio.sleep(1.0)
    hop.scopes.stop_all(Cause.DRAINING)
    await hop.scopes.emptied()
    assert [(event.seconds, event.problem) for event in hop.written()] == [(1.0, "DRAINING")]


@in_virtual_time
async def test_writes_that_pile_up_are_left_out_for_that_tenant_alone() -> None:
    hop = Hop(Store(writing=4.0))
    calls = [hop.call("look", f'{{"number": {number}}}') for number in range(MOST_WRITES + 3)]
    await asyncio.gather(*calls, hop.call("look", tenant_id="bolt"))
    await hop.scopes.emptied()
    problems = [(event.tenant_id, event.problem) for event in hop.written()]
    assert problems.count(("acme", "crowded")) == 3
    assert problems.count(("acme", "")) == MOST_WRITES
    assert problems.count(("bolt", "")) == 1


def key(tenant_id: str, number: int) -> CacheKey:
    return CacheKey(tenant_id, "look", f'{{"number":{number}}}')


@in_virtual_time
async def test_the_store_stays_within_its_bytes_and_gives_up_what_was_not_used_for_longest() -> None:
    cache = MemoryCache(10_000, virtual_time.clock())
    for number in range(4):
        await cache.put(key("acme", number), "x" * 1500, 60.0)
    assert await cache.get(key("acme", 0)) is not None
    await cache.put(key("acme", 4), "x" * 1500, 60.0)
    assert cache.size <= 10_000
    found = [number for number in range(5) if await cache.get(key("acme", number)) is not None]
    assert found == [0, 2, 3, 4]


@in_virtual_time
async def test_a_tenant_that_stores_without_end_takes_nothing_from_one_that_holds_less() -> None:
    cache = MemoryCache(20_000, virtual_time.clock())
    await cache.put(key("bolt", 0), "x" * 1000, 60.0)
    for number in range(100):
        await cache.put(key("acme", number), "x" * 1000, 60.0)
    assert cache.size <= 20_000
    assert await cache.get(key("bolt", 0)) is not None


@in_virtual_time
async def test_what_would_never_fit_is_not_kept_and_pushes_nothing_out() -> None:
    cache = MemoryCache(5_000, virtual_time.clock())
    await cache.put(key("acme", 0), "x", 60.0)
    await cache.put(key("acme", 1), "x" * 6_000, 60.0)
    assert await cache.get(key("acme", 0)) == "x"
    assert await cache.get(key("acme", 1)) is None


@in_virtual_time
async def test_a_result_that_is_put_again_takes_the_place_of_the_old_one() -> None:
    cache = MemoryCache(5_000, virtual_time.clock())
    await cache.put(key("acme", 0), "old", 60.0)
    size = cache.size
    await cache.put(key("acme", 0), "new", 60.0)
    assert (await cache.get(key("acme", 0)), cache.size, len(cache)) == ("new", size, 1)
