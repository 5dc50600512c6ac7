"""A tool-runner that cannot say which tools there are, in memory and virtual time: runs go on."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext

import grpc
import pytest
from tests.support.agent_world import QUICK, Tools
from tests.support.virtual import in_virtual_time, now, with_seconds

from deadlinemesh.deadline import entered
from deadlinemesh.errors import MeshError, NotFound, UpstreamFailed, Violation
from deadlinemesh.orchestrator import GrpcTools
from deadlinemesh.orchestrator.catalog import MOST_TENANTS, SHARE, Catalog, Listed
from deadlinemesh.orchestrator.upstreams import HANG_FLOOR_S, KNOWN, Upstreams
from deadlinemesh.policy import default_policy
from deadlinemesh.telemetry import Retried, Telemetry
from deadlinemesh.testing import virtual_time
from deadlinemesh.testing.mesh import MemoryMesh
from deadlinemesh.transport import error_from
from deadlinemesh.v1 import orchestrator_pb2, orchestrator_pb2_grpc
from deadlinemesh.vocabulary import ToolSpec

ARITHMETIC = "What is (17+25)*3?"
DOWN, HANGS, ANSWERS = UpstreamFailed("down"), None, False
Answers = list[MeshError | bool | None]


class Mesh:
    """A mesh whose tool-runner lists its tools as `answers` say, one after the other, and then as ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: Answers = []
        specs = GrpcTools.specs

        async def listed(tools: GrpcTools) -> tuple[ToolSpec, ...]:
            answer = self.answers.pop(0) if self.answers else ANSWERS
            if answer is HANGS:
                await asyncio.get_running_loop().create_future()
            if isinstance(answer, MeshError):
                raise answer
            return await specs(tools)

        monkeypatch.setattr(GrpcTools, "specs", listed)
        self.mesh = MemoryMesh(default_policy(), virtual_time.clock())

    async def run(self, prompt: str, *tools: str, timeout: float = 20.0) -> orchestrator_pb2.RunFinished:
        stub = orchestrator_pb2_grpc.OrchestratorServiceStub(self.mesh.channel)
        request = orchestrator_pb2.RunRequest(prompt=prompt, tools=tools)
        events = [event async for event in stub.Run(request, timeout=timeout, metadata=self.mesh.credentials("bolt"))]
        finished: orchestrator_pb2.RunFinished = events[-1].finished
        return finished

    def retried(self) -> list[tuple[str, str]]:
        return [(event.upstream, event.why) for event in self.mesh.events.events if isinstance(event, Retried)]


@in_virtual_time
async def test_a_tool_runner_that_fails_to_list_its_tools_once_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = Mesh(monkeypatch)
    mesh.answers = [DOWN]
    finished = await mesh.run(ARITHMETIC)
    assert (finished.outcome, finished.usage.tool_calls) == (orchestrator_pb2.OUTCOME_COMPLETED, 1)
    assert mesh.retried() == [("tools", "UPSTREAM_FAILED")]


@in_virtual_time
async def test_a_tool_runner_that_is_silent_for_too_long_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = Mesh(monkeypatch)
    for _ in range(KNOWN):
        await mesh.run("hello")
    mesh.answers = [HANGS]
    began_at, finished = now(), await mesh.run(ARITHMETIC)
    assert (finished.outcome, finished.usage.tool_calls) == (orchestrator_pb2.OUTCOME_COMPLETED, 1)
    assert mesh.retried() == [("tools", "HUNG")]
    assert now() - began_at < 3.0


@pytest.mark.parametrize("answers", [[DOWN, DOWN], [HANGS, HANGS], [HANGS, DOWN]])
@in_virtual_time
async def test_a_run_uses_the_tools_that_were_known_last_where_the_tool_runner_does_not_list_them(
    monkeypatch: pytest.MonkeyPatch, answers: Answers
) -> None:
    mesh = Mesh(monkeypatch)
    for _ in range(KNOWN):
        await mesh.run("hello")
    mesh.answers = list(answers)
    began_at, finished = now(), await mesh.run(ARITHMETIC, "calculate")
    assert (finished.outcome, finished.usage.tool_calls) == (orchestrator_pb2.OUTCOME_COMPLETED, 1)
    assert now() - began_at < 2 * HANG_FLOOR_S + 2.0


@pytest.mark.parametrize("tools", [(), ("calculate",), ("whatever",)])
@pytest.mark.parametrize("answers", [[DOWN, DOWN], [HANGS, HANGS]])
@in_virtual_time
async def test_a_run_goes_on_without_tools_where_none_were_ever_listed(
    monkeypatch: pytest.MonkeyPatch, answers: Answers, tools: tuple[str, ...]
) -> None:
    mesh = Mesh(monkeypatch)
    mesh.answers = list(answers)
    began_at, finished = now(), await mesh.run("hello", *tools)
    assert (finished.outcome, finished.usage.tool_calls) == (orchestrator_pb2.OUTCOME_COMPLETED, 0)
    assert now() - began_at < SHARE * 20.0 + 2.0


@in_virtual_time
async def test_a_tool_that_the_last_list_had_not_is_left_out_while_there_is_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mesh = Mesh(monkeypatch)
    await mesh.run("hello")
    mesh.answers = [DOWN] * 4
    for _ in range(2):
        finished = await mesh.run(ARITHMETIC, "whatever")
        assert (finished.outcome, finished.usage.tool_calls) == (orchestrator_pb2.OUTCOME_COMPLETED, 0)
    assert caplog.text.count("no tool-runner says which tools there are") == 1


@pytest.mark.parametrize("answers", [[], [NotFound([Violation("tenant_id", "unknown")])]])
@in_virtual_time
async def test_a_refusal_of_the_tool_runner_and_an_unknown_tool_are_still_refused(
    monkeypatch: pytest.MonkeyPatch, answers: Answers
) -> None:
    mesh = Mesh(monkeypatch)
    mesh.answers = list(answers)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await mesh.run("hello", "whatever")
    assert isinstance(error_from(error.value, "orchestrator"), NotFound)


class Listing(Tools):
    """Lists its tools once for each tenant."""

    def __init__(self) -> None:
        super().__init__(QUICK)
        self.listed = 0

    async def specs(self) -> tuple[ToolSpec, ...]:
        if self.listed > MOST_TENANTS:
            raise DOWN
        self.listed += 1
        return await super().specs()


@in_virtual_time
async def test_what_is_remembered_of_tenants_tools_has_a_bound_and_the_oldest_goes_first() -> None:
    tools = Listing()
    catalog = Catalog(tools, Upstreams(Telemetry(), "orchestrator"))
    known = []
    for number in (*range(MOST_TENANTS + 1), 0, 1):
        with entered(with_seconds(10.0, tenant_id=f"tenant-{number}")):
            known.append(await catalog.listed(0, nullcontext))
    assert (known[-2], known[-1]) == (Listed((), now=False), Listed(known[0].specs, now=False))
