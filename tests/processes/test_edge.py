"""What the edge promises its clients, across real processes and real sockets."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import grpc
import pytest
from tests.support.up import GUARD, Up

from deadlinemesh.client import DeadlineMesh
from deadlinemesh.errors import Doomed, InvalidRequest, NoDeadline, NotFound, Unauthenticated
from deadlinemesh.transport import error_from
from deadlinemesh.v1 import common_pb2, llm_proxy_pb2, llm_proxy_pb2_grpc, orchestrator_pb2, orchestrator_pb2_grpc

pytestmark = pytest.mark.processes

LONG = "Run the long task for 20 seconds"


@asynccontextmanager
async def client(mesh: Up, tier: str = "enterprise") -> AsyncIterator[DeadlineMesh]:
    async with DeadlineMesh(mesh.address, api_key=mesh.api_key(tier)) as one:
        yield one


async def started(mesh: Up, *metadata: tuple[str, str], timeout: float | None) -> orchestrator_pb2.RunStarted:
    """The first event of a run whose call carries just this metadata."""
    async with grpc.aio.insecure_channel(mesh.address) as channel:
        stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
        call = stub.Run(orchestrator_pb2.RunRequest(prompt="hello", model="fast"), timeout=timeout, metadata=metadata)
        try:
            async for event in call:
                begun: orchestrator_pb2.RunStarted = event.started
                return begun
        except grpc.aio.AioRpcError as error:
            raise error_from(error, "orchestrator") from None
        finally:
            call.cancel()
    raise AssertionError("the stream was empty")


async def test_who_one_says_to_be_is_dropped_and_how_long_one_has_can_only_narrow(mesh: Up) -> None:
    forged = ("mesh-identity", f"token={mesh.mesh_token};tenant=acme;tier=enterprise;run=run_forged;trace={'ab' * 16}")
    key = ("authorization", f"Bearer {mesh.api_key('free')}")
    begun = await started(mesh, key, forged, timeout=None)
    assert (begun.grant.tenant_id, begun.grant.tier) == ("cora", "free")
    assert begun.grant.granted_us == 30_000_000
    assert begun.run_id != "run_forged"
    for exact, timeout, granted_us in (
        ("5000000", None, 5_000_000),
        ("5000000", 20.0, 5_000_000),
        ("290000000", None, 30_000_000),
        ("290000000", 2.0, 2_100_000),
        ("5e6", None, 30_000_000),
    ):
        begun = await started(mesh, key, forged, ("deadline-remaining-us", exact), timeout=timeout)
        assert granted_us * 0.9 < begun.grant.granted_us <= granted_us


async def test_no_run_begins_for_a_client_with_no_time_left(mesh: Up) -> None:
    key = ("authorization", f"Bearer {mesh.api_key('free')}")
    for timeout in (None, 20.0):
        with pytest.raises(Doomed):
            await started(mesh, key, ("deadline-remaining-us", "0"), timeout=timeout)


async def test_a_client_that_says_it_waited_long_is_served(mesh: Up) -> None:
    # As between hops nearly all of its time was spent on the way; what a stranger says of that sheds nothing.
    key = ("authorization", f"Bearer {mesh.api_key('free')}")
    begun = await started(mesh, key, ("deadline-remaining-us", "9" * 16), timeout=2.0)
    assert begun.grant.granted_us <= 2_100_000


@pytest.mark.parametrize("key", ["", "Bearer ", "Bearer nobodys", "Basic {key}", "{key}"])
async def test_without_a_known_key_nobody_enters(mesh: Up, key: str) -> None:
    metadata = [("authorization", key.format(key=mesh.api_key("free")))] if key else []
    with pytest.raises(Unauthenticated):
        await started(mesh, *metadata, timeout=GUARD)


async def test_inner_hops_want_the_mesh_token_and_a_deadline(mesh: Up) -> None:
    async with grpc.aio.insecure_channel(mesh.inner["llm-proxy"]) as channel:
        stub = llm_proxy_pb2_grpc.LlmProxyServiceStub(channel)
        guessed, known = (
            ("mesh-identity", f"token={token};tenant=acme;tier=enterprise;run=by-hand;trace=")
            for token in ("guessed", mesh.mesh_token)
        )
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.ListModels(llm_proxy_pb2.ListModelsRequest(), timeout=GUARD, metadata=(guessed,))
        assert isinstance(error_from(refused.value, "llm-proxy"), Unauthenticated)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.ListModels(llm_proxy_pb2.ListModelsRequest(), metadata=(known,))
        assert isinstance(error_from(refused.value, "llm-proxy"), NoDeadline)
        listed = await stub.ListModels(llm_proxy_pb2.ListModelsRequest(), timeout=GUARD, metadata=(known,))
    assert [model.name for model in listed.models] == ["demo", "fast"]


async def test_twenty_clients_with_two_seconds_for_twenty_are_all_answered_in_time(mesh: Up) -> None:
    async def ask(number: int) -> tuple[orchestrator_pb2.RunFinished, float]:
        tier = ("enterprise", "professional", "free")[number % 3]
        async with client(mesh, tier) as one:
            asked_at = time.monotonic()
            finished = await one.answer(LONG, deadline=2.0, model="fast")
            return finished, time.monotonic() - asked_at

    for finished, took in await asyncio.gather(*map(ask, range(20))):
        assert took <= 2.0
        assert (finished.outcome, finished.cause) == (
            orchestrator_pb2.OUTCOME_DEADLINE_SPENT,
            common_pb2.CAUSE_DEADLINE_SPENT,
        )
        assert finished.partial
        assert finished.answer
        ledger = finished.ledger
        explained = sum(one.spent_us for one in ledger.phases)
        # Each phase is rounded to a microsecond.
        assert explained + ledger.unattributed_us == pytest.approx(ledger.elapsed_us, abs=len(ledger.phases) + 1)
        assert ledger.elapsed_us <= ledger.granted_us
        assert ledger.unattributed_us < 0.02 * ledger.elapsed_us


async def test_two_calls_with_one_request_id_are_one_run(mesh: Up) -> None:
    request_id = uuid.uuid4().hex

    async def watch(one: DeadlineMesh) -> list[orchestrator_pb2.RunResponse]:
        return [event async for event in one.run("Calculate 6 * 7", request_id=request_id, model="fast")]

    async with client(mesh) as first, client(mesh) as second:
        told = await asyncio.gather(watch(first), watch(second))
        assert sorted(events[0].started.attached for events in told) == [False, True]
        assert len({events[0].started.run_id for events in told}) == 1
        assert told[0][-1].finished == told[1][-1].finished
        assert told[0][-1].finished.usage.tool_calls == 1
        again = await watch(first)
        assert again[0].started.attached
        assert again[-1].finished == told[0][-1].finished


async def test_cancel_run_returns_when_the_run_has_stopped(mesh: Up) -> None:
    async with client(mesh) as watching, client(mesh) as cancelling:
        run_id = ""
        async with aclosing(watching.run(LONG, model="fast")) as events:
            async for event in events:
                run_id = event.started.run_id or run_id
                if event.HasField("tool_call_started"):
                    run = await cancelling.cancel_run(run_id)
                    assert run.state == orchestrator_pb2.RUN_STATE_FINISHED
                    assert run.finished.outcome == orchestrator_pb2.OUTCOME_CANCELLED
        known = await watching.get_run(run_id)
        assert known.run.finished.cause == common_pb2.CAUSE_CLIENT_CANCELLED
        assert (await cancelling.cancel_run(run_id)).finished == known.run.finished


async def test_leaving_the_loop_cancels_the_run(mesh: Up) -> None:
    async with client(mesh) as one:
        run_id = ""
        async for event in one.run(LONG, model="fast"):
            run_id = event.started.run_id or run_id
            if event.HasField("tool_call_started"):
                break
        # CancelRun waits until the run is over, and then changes nothing.
        run = await one.cancel_run(run_id)
        assert run.finished.outcome == orchestrator_pb2.OUTCOME_CANCELLED


async def test_runs_are_listed_page_by_page_newest_first(mesh: Up) -> None:
    async with client(mesh, "professional") as one:
        run_ids = [await _run_id(one) for _ in range(5)]
        listed: list[str] = []
        token = ""
        while len(listed) < len(run_ids):
            page = await one.list_runs(page_size=2, page_token=token, state=orchestrator_pb2.RUN_STATE_FINISHED)
            assert len(page.runs) <= 2
            listed += [run.run_id for run in page.runs]
            token = page.next_page_token
        assert listed[:5] == run_ids[::-1]
        with pytest.raises(InvalidRequest) as refused:
            await one.list_runs(page_size=101, page_token="not-a-token")
        assert [one.field for one in refused.value.violations] == ["page_size", "page_token"]


async def test_a_tenant_sees_its_own_runs_only(mesh: Up) -> None:
    async with client(mesh, "free") as cora, client(mesh, "enterprise") as acme:
        run_id = await _run_id(cora)
        assert (await cora.get_run(run_id)).run.run_id == run_id
        for ask in (acme.get_run, acme.cancel_run):
            with pytest.raises(NotFound):
                await ask(run_id)
        listed = await acme.list_runs(page_size=100)
        assert run_id not in [run.run_id for run in listed.runs]
        assert {run.grant.tenant_id for run in listed.runs} <= {"acme"}


async def _run_id(one: DeadlineMesh) -> str:
    run_id = ""
    async for event in one.run("hello", model="fast"):
        run_id = event.started.run_id or run_id
    return run_id
