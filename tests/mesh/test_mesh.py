"""The three services in memory, in virtual time: whole runs, of up to five minutes, in milliseconds."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from deadlinemesh.client import DeadlineMesh
from deadlinemesh.policy import default_policy
from deadlinemesh.testing import memory, virtual_time
from deadlinemesh.testing.mesh import MemoryMesh
from deadlinemesh.transport.codec import message_from_wire
from deadlinemesh.v1 import common_pb2, orchestrator_pb2, orchestrator_pb2_grpc
from deadlinemesh.vocabulary import history_violations

LONG_TASK = "Run the long task for {} seconds"
ACME, BOLT, CORA = "acme", "bolt", "cora"  # enterprise, professional, free


class Client:
    """Calls a mesh as a tenant."""

    def __init__(self, mesh: MemoryMesh) -> None:
        self.mesh = mesh
        self.stub = orchestrator_pb2_grpc.OrchestratorServiceStub(mesh.channel)

    async def run(
        self, tenant: str, prompt: str, timeout: float | None = None, **request: Any
    ) -> list[orchestrator_pb2.RunResponse]:
        call = self.call(tenant, prompt, timeout, **request)
        return [event async for event in call]

    def call(self, tenant: str, prompt: str, timeout: float | None = None, **request: Any):  # type: ignore[no-untyped-def]
        message = orchestrator_pb2.RunRequest(prompt=prompt, **request)
        return self.stub.Run(message, timeout=timeout, metadata=self.mesh.credentials(tenant))


def in_memory(test: Callable[[Client], Awaitable[None]]) -> None:
    """Run `test` against a fresh mesh, and see that nothing is at work afterwards."""

    async def main() -> None:
        client = Client(MemoryMesh(default_policy(), virtual_time.clock(), transit=0.0005, rounding=1.03))
        await test(client)
        await client.mesh.idle()
        counts = client.mesh.events.counts
        assert counts["CallStarted"] == counts["CallEnded"]
        assert counts["OrphanReported"] == 0

    virtual_time.run(main())


def test_a_run_of_five_minutes_ends_inside_its_tiers_budget() -> None:
    async def test(client: Client) -> None:
        began = virtual_time.clock().monotonic()
        finished = (await client.run(ACME, LONG_TASK.format(1000)))[-1].finished
        assert 299.5 < virtual_time.clock().monotonic() - began < 300
        assert finished.outcome == orchestrator_pb2.OUTCOME_DEADLINE_SPENT
        assert finished.partial

    in_memory(test)


@pytest.mark.parametrize(("tenant", "budget", "iterations"), [(ACME, 300, 10), (BOLT, 120, 5), (CORA, 30, 2)])
def test_each_tier_is_granted_its_own_budget(tenant: str, budget: int, iterations: int) -> None:
    async def test(client: Client) -> None:
        grant = (await client.run(tenant, "What is 2+2?", timeout=1000))[0].started.grant
        assert grant.granted_us == budget * 1_000_000
        assert grant.max_iterations == iterations
        assert grant.clipped

    in_memory(test)


def test_the_ledger_adds_up_to_the_elapsed_time() -> None:
    async def test(client: Client) -> None:
        ledger = (await client.run(ACME, "What is (17+25)*3?"))[-1].finished.ledger
        spent = sum(phase.spent_us for phase in ledger.phases)
        assert spent + ledger.unattributed_us == pytest.approx(ledger.elapsed_us, abs=20)
        assert ledger.unattributed_us < 0.02 * ledger.elapsed_us

    in_memory(test)


def test_each_phase_but_the_answer_itself_is_told_as_it_begins() -> None:
    async def test(client: Client) -> None:
        events = await client.run(ACME, LONG_TASK.format(60), timeout=3.0)
        told = [event.phase_changed.phase for event in events if event.HasField("phase_changed")]
        assert {common_pb2.PHASE_LLM_FIRST_TOKEN, common_pb2.PHASE_TOOL_CALL} <= set(told)
        assert common_pb2.PHASE_RESPONSE not in told  # `finished` tells it
        assert events[-1].HasField("finished")

    in_memory(test)


def test_a_client_is_answered_before_its_own_timer_though_the_core_stretched_its_deadline() -> None:
    async def test(client: Client) -> None:
        for timeout in (0.5, 2.0, 7.3, 29.0):
            finished = (await client.run(ACME, LONG_TASK.format(60), timeout=timeout))[-1].finished
            assert finished.outcome == orchestrator_pb2.OUTCOME_DEADLINE_SPENT
            assert finished.answer
            assert re.fullmatch(r"the [0-9.]+ s that the run may use are spent", finished.detail)

    in_memory(test)


@pytest.mark.parametrize("deadline", [2.0, 20.0, 300.0])
def test_our_client_gives_no_more_than_the_reserve(deadline: float) -> None:
    async def test(client: Client) -> None:
        mesh = DeadlineMesh(api_key=client.mesh.keys[ACME], channel=client.mesh.channel)
        began = virtual_time.clock().monotonic()
        async for event in mesh.run(LONG_TASK.format(1000), deadline=deadline):
            if event.HasField("started"):
                grant = event.started.grant
        took = virtual_time.clock().monotonic() - began
        reserve = client.mesh.policy.limits.response_reserve
        assert event.finished.outcome == orchestrator_pb2.OUTCOME_DEADLINE_SPENT
        assert deadline - reserve <= took < deadline
        assert deadline - (grant.granted_us - grant.reserve_us) / 1e6 <= reserve
        assert not grant.clipped

    in_memory(test)


def test_history_is_valid_after_a_cut() -> None:
    async def test(client: Client) -> None:
        events = await client.run(ACME, LONG_TASK.format(60), timeout=3.0)
        run = await client.stub.GetRun(
            orchestrator_pb2.GetRunRequest(run_id=events[0].started.run_id),
            timeout=1.0,
            metadata=client.mesh.credentials(ACME),
        )
        messages = [message_from_wire(message) for message in run.messages]
        assert any(message.tool_calls for message in messages)
        assert history_violations(messages, "messages") == []

    in_memory(test)


def test_a_page_token_tells_nothing_of_other_tenants() -> None:
    async def test(client: Client) -> None:
        tokens = []
        for tenant, others in ((ACME, 3), (BOLT, 1)):
            for _ in range(others):
                await client.run(CORA, "What is 2+2?")
            for _ in range(2):
                await client.run(tenant, "What is 2+2?")
            page = orchestrator_pb2.ListRunsRequest(page_size=1)
            listed = await client.stub.ListRuns(page, timeout=1.0, metadata=client.mesh.credentials(tenant))
            tokens.append(listed.next_page_token)
        assert tokens[0] == tokens[1]

    in_memory(test)


def test_a_second_call_with_the_request_id_attaches_to_the_same_run() -> None:
    async def test(client: Client) -> None:
        both = await asyncio.gather(
            client.run(ACME, "What is 2+2?", request_id="once"), client.run(ACME, "What is 2+2?", request_id="once")
        )
        assert {events[0].started.run_id for events in both} == {both[0][0].started.run_id}
        assert both[0][-1].finished == both[1][-1].finished
        await client.mesh.idle()
        assert client.mesh.events.counts["RunEnded"] == 1

    in_memory(test)


@pytest.mark.parametrize(
    ("history", "instructions", "begins_with"),
    [
        ([], "", None),
        ([], "Be brief.", "Be brief."),
        (["Be kind."], "", "Be kind."),
        (["Be kind."], "Be brief.", "Be brief."),
    ],
)
def test_a_run_goes_by_its_own_instructions_then_by_its_historys_then_by_policys(
    history: list[str], instructions: str, begins_with: str | None
) -> None:
    async def test(client: Client) -> None:
        said = [common_pb2.Message(role=common_pb2.ROLE_SYSTEM, content=content) for content in history]
        events = await client.run(ACME, "What is 2+2?", history=said, instructions=instructions)
        run = await client.stub.GetRun(
            orchestrator_pb2.GetRunRequest(run_id=events[0].started.run_id), metadata=client.mesh.credentials(ACME)
        )
        first = [one.content for one in run.messages if one.role == common_pb2.ROLE_SYSTEM]
        assert first == [begins_with or client.mesh.policy.instructions]

    in_memory(test)


def test_a_run_ends_with_its_last_watcher() -> None:
    async def test(client: Client) -> None:
        call = client.call(ACME, LONG_TASK.format(60))
        async for event in call:
            if event.HasField("tool_call_started"):
                call.cancel()
                break
        await client.mesh.idle()
        ended = [one for one in client.mesh.events.events if type(one).__name__ == "RunEnded"]
        assert [one.cause for one in ended] == ["CLIENT_CANCELLED"]  # type: ignore[union-attr]

    in_memory(test)


def test_a_tenant_sees_only_its_own_runs() -> None:
    async def test(client: Client) -> None:
        events = await client.run(ACME, "What is 2+2?")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.stub.GetRun(
                orchestrator_pb2.GetRunRequest(run_id=events[0].started.run_id),
                timeout=1.0,
                metadata=client.mesh.credentials(BOLT),
            )
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND

    in_memory(test)


def test_cancel_run_returns_when_the_run_has_stopped() -> None:
    async def test(client: Client) -> None:
        call = client.call(ACME, LONG_TASK.format(60))
        run_id = ""
        async for event in call:
            run_id = event.started.run_id or run_id
            if event.HasField("tool_call_started"):
                cancelled = await client.stub.CancelRun(
                    orchestrator_pb2.CancelRunRequest(run_id=run_id),
                    timeout=1.0,
                    metadata=client.mesh.credentials(ACME),
                )
                assert cancelled.run.state == orchestrator_pb2.RUN_STATE_FINISHED
            last = event
        assert last.finished.outcome == orchestrator_pb2.OUTCOME_CANCELLED

    in_memory(test)


def test_a_request_of_a_million_small_parts_does_not_hold_the_others_up() -> None:
    def asking(count: int) -> common_pb2.Message:
        calls = [common_pb2.ToolCall(id=f"{n:x}", name="a", arguments_json="{}") for n in range(count)]
        return common_pb2.Message(role=common_pb2.ROLE_ASSISTANT, tool_calls=calls)

    wrong = common_pb2.Message(role=common_pb2.ROLE_TOOL, tool_call_id="another")
    requests = {
        "history": [
            orchestrator_pb2.RunRequest(prompt="Go on", history=[common_pb2.Message()] * 1_000_000),
            orchestrator_pb2.RunRequest(prompt="Go on", history=[asking(100_000)]),
        ],
        "tools": [orchestrator_pb2.RunRequest(prompt="Go on", tools=[""] * 1_000_000)],
        "history[1].tool_call_id": [
            orchestrator_pb2.RunRequest(prompt="Go on", history=[asking(4000), *[wrong] * 4000])
        ],
    }

    async def test(client: Client) -> None:
        for field, several in requests.items():
            for request in several:
                began_at = time.process_time()
                with pytest.raises(grpc.aio.AioRpcError, match=re.escape(field)) as refused:
                    await client.stub.Run(request, metadata=client.mesh.credentials(ACME)).read()
                assert (
                    time.process_time() - began_at < 2.0
                )  # it takes 0.3, nearly all of it to make and to parse the message
                assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    in_memory(test)


DEEP = '{"a":' + "[" * 100_000
"""Arguments that no reader can follow to their end."""


def test_what_a_client_sends_and_nobody_can_read_is_its_mistake_and_no_defect() -> None:
    async def test(client: Client) -> None:
        asked = common_pb2.ToolCall(id="1", name="look", arguments_json=DEEP)
        history = [common_pb2.Message(role=common_pb2.ROLE_ASSISTANT, tool_calls=[asked])]
        call = client.stub.Run(
            orchestrator_pb2.RunRequest(prompt="Go on", history=history), metadata=client.mesh.credentials(ACME)
        )
        with pytest.raises(grpc.aio.AioRpcError) as unread:
            await call.read()
        assert unread.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "arguments_json: must be a JSON object" in (unread.value.details() or "")
        for token in ("9" * 5000, "٣", "-1"):
            with pytest.raises(grpc.aio.AioRpcError, match="next_page_token of an earlier page"):
                await client.stub.ListRuns(
                    orchestrator_pb2.ListRunsRequest(page_token=token), metadata=client.mesh.credentials(ACME)
                )

    in_memory(test)


def test_the_last_turn_answers_because_it_is_offered_no_tools() -> None:
    async def test(client: Client) -> None:
        message = orchestrator_pb2.RunRequest(
            prompt="What is 2+2?", limits=orchestrator_pb2.RunLimits(max_iterations=1)
        )
        call = client.stub.Run(message, metadata=client.mesh.credentials(ACME))
        finished = [event async for event in call][-1].finished
        assert finished.iterations == 1
        assert finished.usage.tool_calls == 0
        assert finished.answer

    in_memory(test)


def test_who_attached_to_a_run_keeps_it_though_its_first_client_leaves_before_it_begins() -> None:
    async def test(client: Client) -> None:
        first = client.call(ACME, "What is 2+2?", request_id="once")
        second = asyncio.ensure_future(client.run(ACME, "What is 2+2?", request_id="once"))
        await asyncio.sleep(0.0008)  # virtual: both calls have arrived, and the tools are still being asked for
        first.cancel()
        events = await second
        assert (events[0].started.attached, bool(events[0].started.model)) == (True, True)
        assert events[-1].finished.outcome == orchestrator_pb2.OUTCOME_COMPLETED

    in_memory(test)


def test_a_client_that_comes_back_as_its_old_call_ends_finds_its_run_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = memory._ServicerContext.send_initial_metadata

    async def begin_slowly(*arguments: object) -> None:
        await asyncio.sleep(0.01)
        await begin(*arguments)  # type: ignore[arg-type]

    async def test(client: Client) -> None:
        first = client.call(ACME, LONG_TASK.format(5), request_id="once")
        await asyncio.sleep(1.0)
        monkeypatch.setattr(memory._ServicerContext, "send_initial_metadata", begin_slowly)
        second = asyncio.ensure_future(client.run(ACME, LONG_TASK.format(5), request_id="once"))
        await asyncio.sleep(0.005)  # it has arrived, and is being told which run it is
        first.cancel()
        assert (await second)[-1].finished.outcome == orchestrator_pb2.OUTCOME_COMPLETED

    in_memory(test)


def test_cancel_run_ends_a_run_that_still_waits_for_its_place() -> None:
    async def main() -> None:
        policy = default_policy()
        policy = policy.model_copy(update={"admission": policy.admission.model_copy(update={"runs": 1})})
        client = Client(MemoryMesh(policy, virtual_time.clock()))
        holder = asyncio.ensure_future(client.run(ACME, LONG_TASK.format(5)))
        await asyncio.sleep(0.1)
        waiting = client.call(ACME, LONG_TASK.format(5))
        run_id = dict(await waiting.initial_metadata())["mesh-run-id"]
        cancelled = await client.stub.CancelRun(
            orchestrator_pb2.CancelRunRequest(run_id=run_id), timeout=1.0, metadata=client.mesh.credentials(ACME)
        )
        assert cancelled.run.finished.outcome == orchestrator_pb2.OUTCOME_CANCELLED
        assert [event async for event in waiting][-1].finished == cancelled.run.finished
        assert (await holder)[-1].finished.outcome == orchestrator_pb2.OUTCOME_COMPLETED
        await client.mesh.idle()

    virtual_time.run(main())


@pytest.mark.parametrize("apart", range(13))
def test_cancel_run_returns_when_the_run_has_stopped_also_if_it_is_cancelled_already(apart: int) -> None:
    async def main() -> None:
        policy = default_policy()
        policy = policy.model_copy(update={"admission": policy.admission.model_copy(update={"runs": 1})})
        client = Client(MemoryMesh(policy, virtual_time.clock()))
        holder = asyncio.ensure_future(client.run(BOLT, LONG_TASK.format(5)))
        await asyncio.sleep(1)
        waiting = client.call(ACME, LONG_TASK.format(1))
        cancel = orchestrator_pb2.CancelRunRequest(run_id=dict(await waiting.initial_metadata())["mesh-run-id"])

        async def cancelled() -> orchestrator_pb2.RunInfo:
            reply = await client.stub.CancelRun(cancel, timeout=1.0, metadata=client.mesh.credentials(ACME))
            info: orchestrator_pb2.RunInfo = reply.run
            return info

        first = asyncio.ensure_future(cancelled())
        for _ in range(apart):
            await asyncio.sleep(0)
        for info in (await cancelled(), await first):
            assert info.state == orchestrator_pb2.RUN_STATE_FINISHED
            assert info.finished.outcome == orchestrator_pb2.OUTCOME_CANCELLED
        await holder
        await client.mesh.idle()

    virtual_time.run(main())


def test_a_run_whose_time_is_spent_before_it_begins_is_answered_with_its_ledger() -> None:
    async def main() -> None:
        policy = default_policy()
        policy = policy.model_copy(update={"admission": policy.admission.model_copy(update={"runs": 1})})
        client = Client(MemoryMesh(policy, virtual_time.clock()))
        holder = asyncio.ensure_future(client.run(BOLT, LONG_TASK.format(20)))
        await asyncio.sleep(1)
        events = await client.run(ACME, LONG_TASK.format(20), timeout=2.0)
        finished = events[-1].finished
        assert (finished.outcome, finished.cause) == (
            orchestrator_pb2.OUTCOME_DEADLINE_SPENT,
            common_pb2.CAUSE_DEADLINE_SPENT,
        )
        assert "before it could begin" in finished.detail
        assert finished.answer
        (waited,) = (one for one in finished.ledger.phases if one.phase == common_pb2.PHASE_ADMISSION)
        assert waited.spent_us == pytest.approx(finished.ledger.elapsed_us, abs=2000)
        client.mesh.flush()
        assert client.mesh.events.counts["RunEnded"] == 1
        known = await client.stub.GetRun(
            orchestrator_pb2.GetRunRequest(run_id=events[0].started.run_id), metadata=client.mesh.credentials(ACME)
        )
        assert known.run.finished == finished
        await holder
        await client.mesh.idle()

    virtual_time.run(main())
