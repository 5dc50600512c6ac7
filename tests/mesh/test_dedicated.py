"""A tenant with processes of its own, in memory and virtual time: the edge passes its calls on, under the same contract."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from itertools import pairwise
from typing import Any

import grpc
import pytest

from deadlinemesh import orchestrator
from deadlinemesh.client import DeadlineMesh
from deadlinemesh.errors import DeadlineSpent, InvalidRequest, MeshError, NotFound, UpstreamFailed
from deadlinemesh.identity.grants import MESH_GRANT
from deadlinemesh.policy import SHARED, Policy, default_policy
from deadlinemesh.telemetry import CallStarted, RunEnded
from deadlinemesh.testing import virtual_time
from deadlinemesh.testing.memory import MemoryChannel, MemoryServer
from deadlinemesh.testing.mesh import MemoryMesh
from deadlinemesh.transport import DeadlineInterceptor, MeshChannel, error_from
from deadlinemesh.v1 import common_pb2, orchestrator_pb2, orchestrator_pb2_grpc

LONG_TASK = "Run the long task for {} seconds"
ACME, BOLT, CORA = "acme", "bolt", "cora"  # enterprise, professional, free
TRANSIT = 0.0005
FOR_ACME = "token=memory;tenant=acme;tier=enterprise;run=run_forged;trace="


def dedicating(**tenants: bool) -> Policy:
    """The embedded policy, with what these tenants say of their processes."""
    policy = default_policy()
    changed = {name: policy.tenants[name].model_copy(update={"dedicated": own}) for name, own in tenants.items()}
    return policy.model_copy(update={"tenants": policy.tenants | changed})


class Client:
    """Calls a mesh in which acme is dedicated."""

    def __init__(self, policy: Policy | None = None) -> None:
        policy = policy or dedicating(acme=True)
        self.mesh = MemoryMesh(policy, virtual_time.clock(), transit=TRANSIT, rounding=1.03)
        self.stub: Any = orchestrator_pb2_grpc.OrchestratorServiceStub(self.mesh.channel)

    def call(self, tenant: str, prompt: str, timeout: float | None = None, **request: Any) -> Any:
        message = orchestrator_pb2.RunRequest(prompt=prompt, **request)
        return self.stub.Run(message, timeout=timeout, metadata=self.mesh.credentials(tenant))

    async def run(
        self, tenant: str, prompt: str, timeout: float | None = None, **request: str
    ) -> list[orchestrator_pb2.RunResponse]:
        return [event async for event in self.call(tenant, prompt, timeout, **request)]

    async def ask(self, method: str, tenant: str = ACME, **request: Any) -> Any:
        message = getattr(orchestrator_pb2, f"{method}Request")(**request)
        return await getattr(self.stub, method)(message, timeout=1.0, metadata=self.mesh.credentials(tenant))

    def seen(self, kind: type) -> list[Any]:
        self.mesh.flush()
        return [event for event in self.mesh.events.events if isinstance(event, kind)]


def in_memory(test: Callable[[Client], Awaitable[None]]) -> None:
    """Run `test` against a fresh mesh, and see that nothing is at work afterwards."""

    async def main() -> None:
        client = Client()
        await test(client)
        await client.mesh.idle()
        counts = client.mesh.events.counts
        assert counts["CallStarted"] == counts["CallEnded"]
        assert counts["OrphanReported"] == 0

    virtual_time.run(main())


async def refused(call: Awaitable[Any]) -> MeshError:
    """What `call` fails with."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error_from(error.value, "edge")


def test_where_nobody_is_dedicated_there_is_no_edge_of_its_own() -> None:
    async def main() -> None:
        mesh = MemoryMesh(default_policy(), virtual_time.clock())
        assert set(mesh.hops) == {"llm-proxy", "tool-runner", "orchestrator"}

    virtual_time.run(main())


def test_each_pool_serves_its_own_tenants_and_their_tools() -> None:
    async def test(client: Client) -> None:
        served: dict[str, set[str]] = {}
        for tenant in (ACME, BOLT):
            call = client.call(tenant, LONG_TASK.format(1))
            async for event in call:
                if event.HasField("tool_call_started"):
                    await asyncio.sleep(0.1)
                    busy = client.mesh.hops.items()
                    served[tenant] = {name for name, interceptor in busy if len(interceptor.scopes)}
        assert served[ACME] == {"edge", "orchestrator:acme", "tool-runner:acme"}
        assert served[BOLT] == {"edge", "orchestrator", "tool-runner"}

    in_memory(test)


@pytest.mark.parametrize("timeout", [None, 0.5, 2.0, 29.0, 1000.0])
def test_the_edge_grants_and_nobody_else(timeout: float | None) -> None:
    async def test(client: Client) -> None:
        call = client.call(ACME, LONG_TASK.format(1000), timeout)
        events = [event async for event in call]
        started = [event.started for event in events if event.HasField("started")]
        assert len(started) == 1
        edge, inner = (
            next(one for one in client.seen(CallStarted) if one.hop == hop and one.run_id == started[0].run_id)
            for hop in ("edge", "orchestrator")
        )
        # The deadline came over exactly; it never moves back, but for the transit.
        assert -0.005 < inner.deadline_at - edge.deadline_at <= TRANSIT
        grant = started[0].grant
        assert (grant.tenant_id, grant.tier, grant.clipped) == (ACME, "enterprise", timeout == 1000.0)
        assert grant.granted_us == pytest.approx((edge.deadline_at - edge.started_at) * 1e6, abs=2)
        assert dict(await call.initial_metadata()) == {
            "deadline-granted-us": str(grant.granted_us),
            "mesh-run-id": started[0].run_id,
        }
        (ended,) = client.seen(RunEnded)
        # As long before the deadline as the edge holds back, once: stretch, stagger and reserve are in it.
        assert inner.deadline_at - ended.due_at == pytest.approx(grant.reserve_us / 1e6, abs=1e-5)
        assert events[-1].finished.outcome == orchestrator_pb2.OUTCOME_DEADLINE_SPENT
        assert events[-1].finished.answer

    in_memory(test)


def test_runs_of_several_pools_are_due_apart() -> None:
    async def test(client: Client) -> None:
        await asyncio.gather(
            *(client.run(tenant, LONG_TASK.format(60), 5.0) for tenant in (ACME, BOLT, CORA) for _ in range(5))
        )
        dues = sorted(ended.due_at for ended in client.seen(RunEnded))
        assert min(later - earlier for earlier, later in pairwise(dues)) > 0.0019

    in_memory(test)


def test_the_way_through_the_edge_is_charged_to_admission() -> None:
    async def test(client: Client) -> None:
        ledgers = {}
        for tenant in (ACME, BOLT):
            events = await client.run(tenant, "What is (17+25)*3?")
            ledgers[tenant] = events[-1].finished.ledger
        for ledger in ledgers.values():
            spent = {phase.phase: phase.spent_us for phase in ledger.phases}
            # To the orchestrator, and from there to the tool-runner and back, for the tools there are.
            assert spent[common_pb2.PHASE_ADMISSION] >= 3 * TRANSIT * 1e6 - 500
            assert ledger.unattributed_us < 0.02 * ledger.elapsed_us

    in_memory(test)


def test_a_run_ends_with_its_last_watcher() -> None:
    async def test(client: Client) -> None:
        call = client.call(ACME, LONG_TASK.format(60))
        async for event in call:
            if event.HasField("tool_call_started"):
                call.cancel()
                break
        left_at = virtual_time.clock().monotonic()
        await client.mesh.idle()
        assert virtual_time.clock().monotonic() - left_at < 0.01
        assert [ended.cause for ended in client.seen(RunEnded)] == ["CLIENT_CANCELLED"]

    in_memory(test)


def test_runs_are_known_and_stopped_where_they_are() -> None:
    async def test(client: Client) -> None:
        call = client.call(ACME, LONG_TASK.format(60))
        run_id = ""
        async for event in call:
            run_id = event.started.run_id or run_id
            if event.HasField("tool_call_started"):
                assert (await client.ask("GetRun", run_id=run_id)).run.state == orchestrator_pb2.RUN_STATE_RUNNING
                cancelled = await client.ask("CancelRun", run_id=run_id)
                assert cancelled.run.state == orchestrator_pb2.RUN_STATE_FINISHED
            last = event
        assert last.finished.outcome == orchestrator_pb2.OUTCOME_CANCELLED
        assert [run.run_id for run in (await client.ask("ListRuns")).runs] == [run_id]
        assert not (await client.ask("ListRuns", BOLT)).runs
        assert isinstance(await refused(client.ask("GetRun", BOLT, run_id=run_id)), NotFound)

    in_memory(test)


def test_two_calls_with_one_request_id_are_one_run() -> None:
    async def test(client: Client) -> None:
        told = await asyncio.gather(*(client.run(ACME, "What is 2+2?", request_id="once") for _ in range(2)))
        assert sorted(events[0].started.attached for events in told) == [False, True]
        assert len({events[0].started.run_id for events in told}) == 1
        assert told[0][-1].finished == told[1][-1].finished
        await client.mesh.idle()
        assert client.mesh.events.counts["RunEnded"] == 1

    in_memory(test)


def test_a_refusal_of_the_orchestrator_reaches_the_client_as_it_was_written() -> None:
    async def test(client: Client) -> None:
        error = await refused(client.run(ACME, "hello", model="nope"))
        assert isinstance(error, NotFound)
        assert [one.field for one in error.violations] == ["model"]
        assert error.hop == "orchestrator"
        error = await refused(client.run(ACME, ""))
        assert isinstance(error, InvalidRequest)

    in_memory(test)


def test_what_a_client_says_of_a_grant_is_dropped_at_the_edge() -> None:
    async def test(client: Client) -> None:
        forged = (
            ("mesh-identity", FOR_ACME),
            ("deadline-remaining-us", "290000000"),
            (MESH_GRANT, "granted=290000000;due=290000000;requested="),
        )
        message = orchestrator_pb2.RunRequest(prompt="What is 2+2?")
        call = client.stub.Run(message, timeout=2.0, metadata=(*client.mesh.credentials(BOLT), *forged))
        events = [event async for event in call]
        started = events[0].started
        assert (started.grant.tenant_id, started.grant.tier) == (BOLT, "professional")
        assert started.grant.granted_us <= 2.06 * 1e6
        assert started.run_id != "run_forged"

    in_memory(test)


GRANT = {"mesh-identity": FOR_ACME, MESH_GRANT: "granted=2000000;due=1900000;requested="}


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({}, "UNAUTHENTICATED"),
        (GRANT | {"mesh-identity": FOR_ACME.replace("memory", "guess")}, "UNAUTHENTICATED"),
        (GRANT | {"mesh-identity": FOR_ACME.replace("acme", "bolt")}, "UPSTREAM_FAILED"),
        ({"mesh-identity": FOR_ACME}, "INVALID_REQUEST"),
        (GRANT | {MESH_GRANT: "granted=2000000;due=2000001;requested="}, "INVALID_REQUEST"),
        (GRANT | {MESH_GRANT: "granted=-1;due=0;requested="}, "INVALID_REQUEST"),
    ],
)
def test_an_orchestrator_behind_the_edge_believes_peers_only_and_for_its_own_tenants(
    metadata: Mapping[str, str], reason: str
) -> None:
    async def test(client: Client) -> None:
        stub: Any = orchestrator_pb2_grpc.OrchestratorServiceStub(client.mesh.channels["orchestrator:acme"])
        sent = (*client.mesh.credentials(ACME), *metadata.items())
        error = await refused(stub.ListRuns(orchestrator_pb2.ListRunsRequest(), timeout=2.0, metadata=sent))
        assert error.reason == reason

    in_memory(test)


def test_a_grant_never_extends_the_deadline_of_the_call_that_brings_it() -> None:
    async def test(client: Client) -> None:
        stub: Any = orchestrator_pb2_grpc.OrchestratorServiceStub(client.mesh.channels["orchestrator:acme"])
        longer = GRANT | {MESH_GRANT: "granted=9000000;due=8900000;requested="}
        for timeout, grant in ((1.0, longer), (9.0, GRANT)):
            began = virtual_time.clock().monotonic()
            message = orchestrator_pb2.RunRequest(prompt=LONG_TASK.format(60))
            events = [event async for event in stub.Run(message, timeout=timeout, metadata=tuple(grant.items()))]
            assert events[-1].finished.outcome == orchestrator_pb2.OUTCOME_DEADLINE_SPENT
            assert virtual_time.clock().monotonic() - began < min(timeout, 2.0)

    in_memory(test)


@pytest.mark.parametrize("deadline", [2.0, 20.0, 300.0])
def test_an_edge_of_its_own_holds_the_reserve_back_once(deadline: float) -> None:
    async def test(client: Client) -> None:
        mesh = DeadlineMesh(api_key=client.mesh.keys[ACME], channel=client.mesh.channel)
        began = virtual_time.clock().monotonic()
        finished = await mesh.answer(LONG_TASK.format(1000), deadline=deadline)
        took = virtual_time.clock().monotonic() - began
        assert finished.outcome == orchestrator_pb2.OUTCOME_DEADLINE_SPENT
        assert deadline - client.mesh.policy.limits.response_reserve <= took < deadline
        (run,) = client.seen(RunEnded)
        assert 0 < began + deadline - run.due_at <= client.mesh.policy.limits.response_reserve

    in_memory(test)


class Frozen(grpc.aio.ServerInterceptor):
    """A hop that takes calls and does nothing more."""

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        await asyncio.get_running_loop().create_future()


def test_where_the_orchestrator_stands_still_the_edge_tells_in_time() -> None:
    # For a client whose timeout comes as it was given, or exactly beside it; else the timer of one on the C core may be first.
    async def main() -> None:
        client, clock = Client(), virtual_time.clock()
        policy = client.mesh.policy
        silent = MeshChannel(MemoryChannel(MemoryServer(Frozen())), "memory")
        server: Any = MemoryServer(DeadlineInterceptor("edge", orchestrator.EdgeGate(policy, clock), clock=clock))
        orchestrator.Forwarder(policy, dict.fromkeys((ACME, SHARED), silent)).register(server)
        stub: Any = orchestrator_pb2_grpc.OrchestratorServiceStub(MemoryChannel(server))
        for timeout in (0.5, 2.0, 300.0):
            message = orchestrator_pb2.RunRequest(prompt="hello")
            began = clock.monotonic()
            call = stub.Run(message, timeout=timeout, metadata=client.mesh.credentials(ACME))
            with pytest.raises(grpc.aio.AioRpcError) as told:
                await call.read()
            # By the edge, with its cause, and not by the client's own timer.
            assert clock.monotonic() - began < timeout
            assert str(error_from(told.value, "edge")) == "the orchestrator did not answer in time"
            assert told.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            asked = stub.ListRuns(
                orchestrator_pb2.ListRunsRequest(), timeout=timeout, metadata=client.mesh.credentials(ACME)
            )
            assert str(await refused(asked)) == "the orchestrator did not answer in time"

    virtual_time.run(main())


@pytest.mark.parametrize("timeout", [0.02, 0.2, 0.5])
def test_a_call_with_less_time_than_the_response_reserve_is_answered_all_the_same(timeout: float) -> None:
    async def main() -> None:
        policy = dedicating(acme=True)
        limits = policy.limits.model_copy(update={"response_reserve": 1.0})
        client = Client(policy.model_copy(update={"limits": limits}))
        listed = await client.stub.ListRuns(
            orchestrator_pb2.ListRunsRequest(), timeout=timeout, metadata=client.mesh.credentials(ACME)
        )
        assert not listed.runs

    virtual_time.run(main())


def test_where_the_orchestrator_is_gone_the_client_is_told_that_its_upstream_failed() -> None:
    class Gone(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
            async def unavailable(request: Any, context: Any) -> None:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

            return grpc.unary_stream_rpc_method_handler(unavailable)

    async def main() -> None:
        client, clock = Client(), virtual_time.clock()
        gone = MeshChannel(MemoryChannel(MemoryServer(Gone())), "memory")
        interceptor = DeadlineInterceptor("edge", orchestrator.EdgeGate(client.mesh.policy, clock), clock=clock)
        server: Any = MemoryServer(interceptor)
        orchestrator.Forwarder(client.mesh.policy, dict.fromkeys((ACME, SHARED), gone)).register(server)
        stub: Any = orchestrator_pb2_grpc.OrchestratorServiceStub(MemoryChannel(server))
        message = orchestrator_pb2.RunRequest(prompt="hello")
        call = stub.Run(message, timeout=2.0, metadata=client.mesh.credentials(ACME))
        error = await refused(call.read())
        assert isinstance(error, UpstreamFailed)
        assert not isinstance(error, DeadlineSpent)

    virtual_time.run(main())
