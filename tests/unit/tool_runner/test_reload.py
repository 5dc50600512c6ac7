"""A reload forgets kept results, and bounds the workers anew."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

from tests.support.virtual import in_virtual_time, with_seconds

from deadlinemesh.deadline import Scopes
from deadlinemesh.policy import Policy, default_policy
from deadlinemesh.testing import virtual_time
from deadlinemesh.tool_runner.kinds.python import PythonTool
from deadlinemesh.tool_runner.outcome import Tool
from deadlinemesh.tool_runner.registry import Registry
from deadlinemesh.tool_runner.service import ToolService
from deadlinemesh.tool_runner.tool import definition_of, tool
from deadlinemesh.vocabulary import ToolFinished, ToolResult, ToolStatus


@tool
async def look() -> str:
    """Look."""
    return "fresh"


class Kept:
    """A cache that has a result of each call."""

    async def find(self, tool: Tool, arguments: Mapping[str, Any]) -> ToolResult:
        return ToolResult(ToolStatus.OK, "kept by the old policy")

    def keep(self, tool: Tool, arguments: Mapping[str, Any], result: ToolResult) -> None: ...


def registry() -> Registry:
    definition = definition_of(look)
    assert definition is not None
    return Registry({"look": PythonTool(definition)}, {"acme": ()})


async def content(service: ToolService) -> str:
    async def call() -> str:
        async with aclosing(service.call("look", "{}")) as events:
            (*_, last) = [event async for event in events]
        assert isinstance(last, ToolFinished)
        return last.result.content

    return await Scopes("tool-runner").open(with_seconds(10.0)).run(call())


@in_virtual_time
async def test_kept_result_of_the_old_policy_is_not_used() -> None:
    kept: Any = Kept()
    service = ToolService(registry(), 1_000_000, virtual_time.clock(), kept)
    assert await content(service) == "kept by the old policy"
    service.replace(registry(), 1_000_000)
    assert await content(service) == "fresh"


def with_workers(workers: int) -> Policy:
    policy = default_policy()
    return policy.model_copy(update={"tools": policy.tools.model_copy(update={"workers": workers})})


@in_virtual_time
async def test_new_policy_bounds_the_workers() -> None:
    before = Registry.from_policy(with_workers(2), clock=virtual_time.clock())
    after = Registry.from_policy(with_workers(5), before, clock=virtual_time.clock())
    places = before._places
    assert places is not None
    assert places.workers._bulkhead.limit == 2
    after.take_place_of(before, with_workers(5).shares())
    assert places.workers._bulkhead.limit == 5
    await before.aclose()
    await after.aclose()
