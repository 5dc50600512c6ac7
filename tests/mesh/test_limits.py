"""What a tenant with a key can cost: each limit refuses or ends what exceeds it, is counted, and costs nobody else."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any

import grpc
import pytest

from deadlinemesh import orchestrator
from deadlinemesh.errors import Cause, InvalidRequest, MeshError, Shed, TooLarge
from deadlinemesh.orchestrator import servicer
from deadlinemesh.orchestrator.run import AgentRun
from deadlinemesh.policy import Policy, default_policy
from deadlinemesh.telemetry import LimitHit
from deadlinemesh.testing import virtual_time
from deadlinemesh.testing.mesh import MemoryMesh
from deadlinemesh.transport import error_from
from deadlinemesh.v1 import common_pb2, orchestrator_pb2, orchestrator_pb2_grpc
from deadlinemesh.vocabulary import FinishReason, ModelEvent, Role, TextDelta, ToolCall, TurnFinished, TurnRequest
from deadlinemesh.vocabulary.hops import ORCHESTRATOR

FREE, OTHER = "cora", "bolt"
LONG_TASK = "Run the long task for 20 seconds"


class Provider:
    """A model that says what it is given, once for each turn."""

    def __init__(self, *turns: Sequence[ModelEvent]) -> None:
        self._turns = list(turns)
        self.asked: list[TurnRequest] = []
        self.said = 0

    async def stream(self, turn: TurnRequest) -> AsyncGenerator[ModelEvent, None]:
        self.asked.append(turn)
        for event in self._turns.pop(0) if self._turns else ():
            self.said += 1
            yield event
            await asyncio.sleep(0)
        yield TurnFinished(FinishReason.STOP, 1, 1)

    async def aclose(self) -> None:
        """Nothing is held."""


class Client:
    """Calls a mesh in memory."""

    def __init__(self, mesh: MemoryMesh) -> None:
        self.mesh = mesh
        self.stub = orchestrator_pb2_grpc.OrchestratorServiceStub(mesh.channel)

    async def run(self, tenant: str = FREE, **request: Any) -> orchestrator_pb2.RunFinished:
        """How the run ends. Raises what refuses it."""
        message = orchestrator_pb2.RunRequest(**{"prompt": "Calculate 2 * 21", **request})
        events = [event async for event in self.stub.Run(message, metadata=self.mesh.credentials(tenant))]
        return events[-1].finished

    async def refused(self, call: Awaitable[Any]) -> MeshError:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        return error_from(refused.value, "orchestrator")

    def list(self, tenant: str = FREE) -> Any:
        return self.stub.ListRuns(orchestrator_pb2.ListRunsRequest(), metadata=self.mesh.credentials(tenant))

    async def all_over(self) -> None:
        """Return when nothing is at work, and what has ended is put away."""
        await self.mesh.idle()
        await asyncio.sleep(0.1)  # by the virtual clock: all that is left to do is done by then
        self.mesh.flush()

    def hits(self) -> dict[str, int]:
        """How often each limit was hit, by its name."""
        return Counter(event.limit for event in self.mesh.events.events if isinstance(event, LimitHit))


def changed(policy: Policy, tier: str = "free", **values: Any) -> Policy:
    """`policy` with other values: of `limits` and `admission` where these have such a field, else of the tier."""
    for name, value in values.items():
        section = next((one for one in ("limits", "admission") if name in type(getattr(policy, one)).model_fields), "")
        if section:
            changed_section = getattr(policy, section).model_copy(update={name: value})
            policy = policy.model_copy(update={section: changed_section})
        else:
            assert name in type(policy.tiers[tier]).model_fields
            tiers = {**policy.tiers, tier: policy.tiers[tier].model_copy(update={name: value})}
            policy = policy.model_copy(update={"tiers": tiers})
    return policy


def in_memory(
    test: Callable[[Client], Awaitable[None]], provider: Provider | None = None, dedicated: bool = False, **values: Any
) -> None:
    policy = changed(default_policy(), **values)
    if dedicated:
        acme = policy.tenants["acme"].model_copy(update={"dedicated": True})
        policy = policy.model_copy(update={"tenants": {**policy.tenants, "acme": acme}})
    providers = None if provider is None else dict.fromkeys(policy.models, provider)

    async def main() -> None:
        mesh = MemoryMesh(policy, virtual_time.clock(), providers=providers)
        client = Client(mesh)
        await test(client)
        await client.all_over()
        for one in mesh.orchestrators:
            assert one._memory.budget.held == 0

    virtual_time.run(main())


@pytest.mark.parametrize("dedicated", [False, True])
def test_calls_beyond_the_rate_are_shed_until_it_allows_them(dedicated: bool) -> None:
    async def test(client: Client) -> None:
        for _ in range(5):
            await client.list()
        error = await client.refused(client.list())
        assert isinstance(error, Shed)
        assert error.retry_after == pytest.approx(0.1)
        assert "calls_per_second 10" in str(error)
        await client.list(OTHER)
        await asyncio.sleep(error.retry_after or 0.0)
        await client.list()
        assert client.hits() == {"calls_per_second": 1}

    in_memory(test, dedicated=dedicated, calls_per_second=10, burst=5)


@pytest.mark.parametrize("dedicated", [False, True])
def test_large_requests_count_as_many_calls(dedicated: bool) -> None:
    async def test(client: Client) -> None:
        await client.refused(client.run(prompt=" " * 1_000_000))
        error = await client.refused(client.list())
        assert isinstance(error, Shed)
        assert error.retry_after == pytest.approx(1.2, abs=0.1)
        await client.list(OTHER)
        await asyncio.sleep(error.retry_after or 0.0)
        await client.list()

    in_memory(test, dedicated=dedicated, calls_per_second=10, burst=5)


def test_refused_calls_count_against_the_rate() -> None:
    async def test(client: Client) -> None:
        wrong = [
            client.run(prompt=""),
            client.run(model="none"),
            client.run(prompt="x", history=[common_pb2.Message()]),
        ]
        for call in wrong:
            assert not isinstance(await client.refused(call), Shed)
        assert isinstance(await client.refused(client.list()), Shed)

    in_memory(test, calls_per_second=1, burst=3)


@pytest.mark.parametrize("dedicated", [False, True])
def test_calls_at_work_are_bounded_and_free_their_places(dedicated: bool) -> None:
    async def test(client: Client) -> None:
        for _ in range(3):  # as often as there are ways to leave
            running = [asyncio.ensure_future(client.run(prompt=LONG_TASK)) for _ in range(4)]
            await asyncio.sleep(1.0)
            error = await client.refused(client.list())
            assert isinstance(error, Shed)
            assert "concurrent_calls 4" in str(error)
            await client.list(OTHER)
            for one in running:
                one.cancel()
            await asyncio.wait(running)
            await client.mesh.idle()
        assert client.hits() == {"concurrent_calls": 3}
        await client.list()

    in_memory(test, dedicated=dedicated, concurrent_calls=4)


@pytest.mark.parametrize("dedicated", [False, True])
def test_a_request_beyond_its_tiers_size_is_too_large(dedicated: bool) -> None:
    async def test(client: Client) -> None:
        error = await client.refused(client.run(prompt="x" * 10_001))
        assert isinstance(error, TooLarge)
        assert "request_bytes of the tier allows 10000" in str(error)
        assert (await client.run(OTHER, prompt="x" * 10_001)).answer
        assert client.hits() == {"request_bytes": 1}

    in_memory(test, dedicated=dedicated, request_bytes=10_000)


def test_large_requests_of_one_tenant_leave_memory_to_others() -> None:
    async def test(client: Client) -> None:
        large = LONG_TASK + " " * 1_000_000
        running = [asyncio.ensure_future(client.run(prompt=large)) for _ in range(4)]
        await asyncio.sleep(1.0)
        error = await client.refused(client.run(prompt=large))
        assert isinstance(error, Shed)
        assert error.retry_after == pytest.approx(0.5)
        assert "memory_bytes are 20000000 for all" in str(error)
        assert (await client.run(OTHER, prompt="x" * 1_000_000)).answer
        await asyncio.gather(*running)
        await client.mesh.idle()
        assert (await client.run(prompt="x" * 1_000_000)).answer
        assert client.hits() == {"memory_bytes": 1}

    in_memory(test, memory_bytes=20_000_000, memory_part=0.5)


def test_a_run_that_outgrows_its_bytes_ends_with_what_it_has() -> None:
    provider = Provider([TextDelta("word " * 200)] * 1000)

    async def test(client: Client) -> None:
        finished = await client.run()
        assert (finished.outcome, finished.cause) == (
            orchestrator_pb2.OUTCOME_FAILED,
            getattr(common_pb2, f"CAUSE_{Cause.SHED}"),
        )
        assert finished.partial
        assert finished.answer.startswith("word word")
        assert len(finished.answer) < 150_000
        assert finished.detail.endswith("run_bytes")
        assert provider.said < 200
        assert client.hits() == {"run_bytes": 1}

    in_memory(test, provider, run_bytes=100_000)


def test_a_run_that_outgrows_all_memory_ends_with_what_it_has() -> None:
    provider = Provider([TextDelta("word " * 200)] * 1000)

    async def test(client: Client) -> None:
        finished = await client.run()
        assert finished.detail.endswith("memory_bytes")
        assert finished.answer.startswith("word word")

    in_memory(test, provider, memory_bytes=200_000)


def calls(count: int, arguments: str = '{"expression": "1 + 1"}') -> list[ModelEvent]:
    return [ToolCall(f"c{number}", "calculate", arguments) for number in range(count)]


def test_calls_beyond_a_turns_number_fail_and_the_model_reads_why() -> None:
    provider = Provider(calls(1000), [TextDelta("done")])

    async def test(client: Client) -> None:
        finished = await client.run()
        assert finished.answer == "done"
        assert finished.usage.tool_calls == 20
        results = [one.content for one in provider.asked[1].messages if one.role is Role.TOOL]
        assert results[:10] == ["2"] * 10
        assert all(one.startswith("This call was not made: a turn may make 10 calls") for one in results[10:])
        assert provider.said < 100  # then its stream is left
        assert client.hits() == {"tool_calls_per_turn": 10}

    in_memory(test, provider, tool_calls_per_turn=10)


def test_a_call_with_parts_too_long_leaves_a_history_that_is_taken_again() -> None:
    long = "x" * 5000
    odd = [
        ToolCall(long, "calculate", "{}"),
        ToolCall(long, long, "{}"),
        ToolCall("c", "calculate", f'{{"a": "{long}"}}'),
    ]
    provider = Provider([*odd], [TextDelta("done")], [TextDelta("again")])

    async def test(client: Client) -> None:
        assert (await client.run(request_id="first")).answer == "done"
        (listed,) = (await client.list()).runs
        asked = orchestrator_pb2.GetRunRequest(run_id=listed.run_id)
        known = await client.stub.GetRun(asked, metadata=client.mesh.credentials(FREE))
        assert known.ByteSize() < 5000
        assert (await client.run(history=known.messages)).answer == "again"
        assert client.hits() == {"longest_arguments": 1}

    in_memory(test, provider, longest_arguments=1000)


def test_many_small_pieces_of_text_take_little_and_are_all_told() -> None:
    provider = Provider([TextDelta("x")] * 5000)

    async def test(client: Client) -> None:
        request = orchestrator_pb2.RunRequest(prompt="Go", request_id="one")
        credentials = client.mesh.credentials(FREE)
        told = 0
        again: asyncio.Task[str] | None = None

        async def text_of() -> str:
            return "".join([event.text.text async for event in client.stub.Run(request, metadata=credentials)])

        async for event in client.stub.Run(request, metadata=credentials):
            told += len(event.text.text)
            if told == 2500 and again is None:
                again = asyncio.ensure_future(text_of())
        assert told == 5000
        assert again is not None
        assert await again == "x" * 5000
        assert await text_of() == "x" * 5000
        await client.all_over()
        (run,) = client.mesh.orchestrators[0].runs(FREE)
        assert run.finished is not None
        assert len(run.events) < 100

    in_memory(test, provider)


def test_refused_and_early_runs_leave_their_staggered_ends() -> None:
    async def test(client: Client) -> None:
        (gate,) = (hop._gate for name, hop in client.mesh.hops.items() if name == ORCHESTRATOR)
        for _ in range(50):
            await client.refused(client.run(prompt=""))
            await client.run()
        assert isinstance(gate, orchestrator.EdgeGate)
        await asyncio.sleep(0.001)  # the last reply is on its way
        assert len(gate._ends) == 0

    in_memory(test)


def test_a_page_of_large_runs_is_built_as_far_as_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    provider = Provider(*[[TextDelta("x" * 16_000)] * 20 for _ in range(10)])
    built: list[str] = []
    made = servicer._info

    def info(run: AgentRun) -> orchestrator_pb2.RunInfo:
        built.append(run.request_id)
        return made(run)

    monkeypatch.setattr(servicer, "_info", info)

    async def test(client: Client) -> None:
        for number in range(10):
            await client.run(request_id=str(number))
        page = await client.list()
        assert [one.request_id for one in page.runs] == ["9", "8", "7"]
        assert built == ["9", "8", "7"]
        asked = orchestrator_pb2.ListRunsRequest(page_token=page.next_page_token)
        page = await client.stub.ListRuns(asked, metadata=client.mesh.credentials(FREE))
        assert [one.request_id for one in page.runs] == ["6", "5", "4"]

    in_memory(test, provider)


def test_a_request_of_too_many_parts_is_refused_unparsed() -> None:
    async def test(client: Client) -> None:
        run = client.mesh.channel.unary_stream("/deadlinemesh.v1.OrchestratorService/Run")
        call = run(b"\x0a\x01x" + b"\x22\x00" * 100_000, metadata=client.mesh.credentials(FREE))
        error = await client.refused(call.read())
        assert isinstance(error, InvalidRequest)
        assert "more than 32768 parts" in str(error)

    in_memory(test)


def test_a_question_larger_than_any_is_refused() -> None:
    async def test(client: Client) -> None:
        asked = orchestrator_pb2.GetRunRequest(run_id="x" * 100_000)
        call = client.stub.GetRun(asked, metadata=client.mesh.credentials(FREE))
        assert isinstance(await client.refused(call), TooLarge)

    in_memory(test)
