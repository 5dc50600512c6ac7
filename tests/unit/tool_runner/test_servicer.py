from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from deadlinemesh.admission import Wait, WaitEnd
from deadlinemesh.deadline import SYSTEM_CLOCK, DeadlineContext, Scopes
from deadlinemesh.errors import Cause, ClientCancelled, DeadlineSpent, InvalidRequest, NotFound
from deadlinemesh.policy.model import Policy
from deadlinemesh.telemetry import CountingSink, Telemetry
from deadlinemesh.tool_runner import ToolError, tool
from deadlinemesh.tool_runner.servicer import ToolRunnerServicer, build
from deadlinemesh.v1 import common_pb2, tool_runner_pb2


def policy(**changes: Any) -> Policy:
    return Policy.model_validate(
        {
            "tiers": {"free": {"run_budget": 30, "iterations": 2}},
            "tenants": {"acme": {"tier": "free", "api_keys": ["sha256:" + "0" * 64]}},
            "models": {"scripted": {"provider": "scripted"}},
        }
        | changes
    )


@tool
async def busy(wait: str) -> None:
    """Ask to be left alone."""
    raise ToolError("busy", transient=True, retry_after=float(wait))


@pytest.fixture
async def servicer() -> AsyncIterator[ToolRunnerServicer]:
    built = build(policy())
    yield built
    await built.aclose()


async def called(servicer: ToolRunnerServicer, name: str, **arguments: Any) -> list[tool_runner_pb2.CallToolResponse]:
    request = tool_runner_pb2.CallToolRequest(call_id="c1", name=name, arguments_json=json.dumps(arguments))
    async with aclosing(servicer.CallTool(request, None)) as responses:  # type: ignore[type-var]
        return [response async for response in responses]


async def call(servicer: ToolRunnerServicer, name: str, **arguments: Any) -> list[tool_runner_pb2.CallToolResponse]:
    responses: list[tool_runner_pb2.CallToolResponse] = await scoped(called(servicer, name, **arguments))
    return responses


def context(seconds: float = 30.0) -> DeadlineContext:
    now = SYSTEM_CLOCK.monotonic()
    return DeadlineContext("acme", now + seconds, "free", "0" * 32, "run-1", now)


async def scoped(work: Any) -> Any:
    return await Scopes("tool-runner").open(context()).run(work)


async def test_a_call_is_started_then_progress_then_one_result_with_its_spend(servicer: ToolRunnerServicer) -> None:
    responses = await call(servicer, "long_task", seconds=0, steps=2)
    assert [response.WhichOneof("event") for response in responses] == ["started", "progress", "progress", "result"]
    assert [(r.progress.fraction, r.progress.message) for r in responses[1:3]] == [
        (0.5, "step 1 of 2"),
        (1.0, "step 2 of 2"),
    ]
    result = responses[-1].result
    assert result.status == common_pb2.TOOL_STATUS_OK
    assert result.content == "done: 0 s in 2 steps"
    assert result.spend.hop == "tool-runner"
    phases = {phase.phase: phase.spent_us for phase in result.spend.phases}
    assert set(phases) <= {common_pb2.PHASE_TOOL_QUEUE, common_pb2.PHASE_TOOL_CALL}
    assert 0 < sum(phases.values()) <= result.spend.elapsed_us
    assert responses[0].started.queue_us == phases.get(common_pb2.PHASE_TOOL_QUEUE, 0)


async def test_a_failure_is_a_result(servicer: ToolRunnerServicer) -> None:
    result = (await call(servicer, "calculate", expression="1/0"))[-1].result
    assert result.status == common_pb2.TOOL_STATUS_FAILED
    assert "division by zero" in result.content
    assert (result.transient, result.retry_after_us) == (False, 0)


@pytest.mark.parametrize(("wait", "told"), [("2.5", 2_500_000), ("-1", 0), ("nan", 0), ("inf", 366 * 86400 * 10**6)])
async def test_a_failure_is_told_whatever_wait_it_asks_for(wait: str, told: int) -> None:
    servicer = build(policy(tools={"modules": [__name__]}))
    result = (await call(servicer, "busy", wait=wait))[-1].result
    assert (result.content, result.transient, result.retry_after_us) == ("busy failed: busy", True, told)
    await servicer.aclose()


async def test_wrong_arguments_are_a_result(servicer: ToolRunnerServicer) -> None:
    (response,) = await call(servicer, "calculate", expresion="1")
    assert response.result.status == common_pb2.TOOL_STATUS_INVALID_ARGUMENTS
    assert "there is no such argument; the arguments are expression" in response.result.content


async def test_an_unknown_tool_is_an_error(servicer: ToolRunnerServicer) -> None:
    with pytest.raises(NotFound, match="calculate"):
        await call(servicer, "calc")


async def test_tools_are_listed_with_their_schemas(servicer: ToolRunnerServicer) -> None:
    listed = await scoped(servicer.ListTools(tool_runner_pb2.ListToolsRequest(), None))
    assert [spec.name for spec in listed.tools] == ["calculate", "current_time", "long_task", "text_stats"]
    assert [spec.idempotent for spec in listed.tools] == [True, False, True, True]
    schema = json.loads(listed.tools[0].arguments_schema_json)
    assert schema["required"] == ["expression"]
    assert schema["properties"]["expression"]["description"].startswith("Arithmetic")


async def test_a_bad_reload_is_refused_and_the_good_policy_stays(servicer: ToolRunnerServicer) -> None:
    with pytest.raises(InvalidRequest, match="nowhere"):
        servicer.prepared(policy(tools={"modules": ["nowhere"]}))
    assert (await call(servicer, "calculate", expression="1+1"))[-1].result.content == "2"


async def go_over(servicer: ToolRunnerServicer, policy: Policy) -> None:
    """Go over to `policy`, and end what is left of the one before once no call uses it."""
    rest = servicer.prepared(policy)()
    assert rest is not None
    await rest.end()


async def test_a_good_reload_is_in_force_at_once(servicer: ToolRunnerServicer) -> None:
    tenants = {"acme": {"tier": "free", "api_keys": ["sha256:" + "0" * 64], "tools": ["text_stats"]}}
    await go_over(servicer, policy(tenants=tenants))
    listed = await scoped(servicer.ListTools(tool_runner_pb2.ListToolsRequest(), None))
    assert [spec.name for spec in listed.tools] == ["text_stats"]
    with pytest.raises(NotFound, match="one of text_stats"):
        await call(servicer, "calculate", expression="1+1")


@pytest.mark.parametrize(
    "change",
    [
        {"tenants": {"bolt": {"tier": "free", "api_keys": ["sha256:" + "1" * 64]}}},
        {"tenants": {"acme": {"tier": "free", "api_keys": ["sha256:" + "0" * 64], "tools": ["text_stats"]}}},
        {"tools": {"modules": [__name__]}},
    ],
)
async def test_a_run_keeps_the_tools_that_a_reload_takes_away(change: dict[str, Any]) -> None:
    servicer = build(policy())
    begun = context()
    rest = servicer.prepared(policy(**change))()
    assert rest is not None
    assert rest.needed_for == 30.0
    responses = await Scopes("tool-runner").open(begun).run(called(servicer, "calculate", expression="1+1"))
    assert responses[-1].result.content == "2"
    with pytest.raises(NotFound) as refused:  # a run that begins now
        await call(servicer, "calculate", expression="1+1")
    assert "bolt" not in str(refused.value)
    await rest.end()
    await servicer.aclose()


class SlowUpstream:
    """Reads requests and answers none of them."""

    def __init__(self) -> None:
        self.requests = 0
        self.arrived = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readline():
            if await reader.readuntil(b"\r\n\r\n"):
                self.requests += 1
                self.arrived.set()
        writer.close()


async def test_a_reload_gives_nobody_a_second_set_of_connections() -> None:
    upstream, sink, scopes = SlowUpstream(), CountingSink(), Scopes("tool-runner")
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    same = policy(tools={"http": {"slow": {"url": url, "description": "Slow."}}, "connections_per_host": 1})
    servicer = build(same, telemetry=Telemetry([sink]))
    holder = scopes.open(context())
    holding = asyncio.create_task(holder.run(called(servicer, "slow")))
    await upstream.arrived.wait()
    rest = asyncio.create_task(go_over(servicer, same))
    with pytest.raises(DeadlineSpent):
        await scopes.open(context(0.05)).run(called(servicer, "slow"))
    waits = [event.end for event in sink.events if isinstance(event, Wait)]
    assert (waits, upstream.requests) == ([WaitEnd.GRANTED, WaitEnd.LEFT], 1)
    holder.stop(Cause.CLIENT_CANCELLED)
    with pytest.raises(ClientCancelled):
        await holding
    await rest
    await servicer.aclose()
    server.close()


class StartedKeeper:
    """A keeper that has nothing to keep."""

    lost = False

    async def aclose(self) -> None:
        pass


async def test_a_reload_warms_what_the_first_call_would_wait_for_and_can_do_without() -> None:
    starts: list[OSError | None] = [OSError("no more processes"), None]

    def start() -> Any:
        if (why := starts.pop(0)) is not None:
            raise why
        return StartedKeeper()

    servicer = build(policy(), keeper=start)
    for left in (1, 0, 0):
        await go_over(servicer, policy(tools={"modules": ["tests.support.blocking_tools"]}))
        assert len(starts) == left
    await servicer.aclose()
