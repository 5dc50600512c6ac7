"""The Python client against a whole mesh in memory, in virtual time."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
import pytest
from tests.support.virtual import in_virtual_time, now, with_seconds

from deadlinemesh.client import DeadlineMesh
from deadlinemesh.client.address import is_loopback
from deadlinemesh.deadline import Scopes
from deadlinemesh.errors import (
    ClientCancelled,
    DeadlineSpentUpstream,
    Doomed,
    InvalidRequest,
    NotFound,
    Unauthenticated,
    UpstreamFailed,
)
from deadlinemesh.policy import default_policy
from deadlinemesh.testing import virtual_time
from deadlinemesh.testing.mesh import MemoryMesh
from deadlinemesh.v1 import orchestrator_pb2

LONG = "Run the long task for 20 seconds"


def mesh_and_client(tenant: str = "acme", *, transit: float = 0.0) -> tuple[MemoryMesh, DeadlineMesh]:
    mesh = MemoryMesh(default_policy(), virtual_time.clock(), transit=transit)
    return mesh, DeadlineMesh(api_key=mesh.keys[tenant], channel=mesh.channel)


@in_virtual_time
async def test_a_run_yields_its_events_from_started_to_finished() -> None:
    mesh, client = mesh_and_client()
    events = [event async for event in client.run("Calculate 2 * 21", deadline=20.0)]
    assert events[0].started.grant.tenant_id == "acme"
    assert events[0].started.grant.requested_us == 19_999_850  # less the time that a call takes at least
    assert "42" in events[-1].finished.answer
    await mesh.idle()


@in_virtual_time
async def test_no_deadline_leaves_it_to_the_tier() -> None:
    _, client = mesh_and_client("cora")
    async with aclosing(client.run("hello")) as events:
        started = (await anext(events)).started
    assert (started.grant.requested_us, started.grant.granted_us) == (0, 30_000_000)


@in_virtual_time
async def test_answer_returns_a_partial_answer_when_the_time_is_spent() -> None:
    _, client = mesh_and_client(transit=0.01)
    began_at = now()
    finished = await client.answer(LONG, deadline=2.0)
    assert finished.outcome == orchestrator_pb2.OUTCOME_DEADLINE_SPENT
    assert finished.partial
    assert finished.answer
    assert now() - began_at <= 2.0


@in_virtual_time
async def test_leaving_the_loop_cancels_the_run_on_every_hop() -> None:
    mesh, client = mesh_and_client()
    async for event in client.run(LONG):
        if event.HasField("tool_call_started"):
            break
    left_at = now()
    await mesh.idle()
    assert now() - left_at < 1.0
    listed = await client.list_runs()
    assert listed.runs[0].finished.outcome == orchestrator_pb2.OUTCOME_CANCELLED


@in_virtual_time
async def test_a_run_ends_with_the_scope_it_was_begun_in() -> None:
    mesh, client = mesh_and_client()

    async def work() -> None:
        events = client.run(LONG)
        await anext(events)
        kept.append(events)  # held, so that only the scope can end it

    kept: list[Any] = []
    await Scopes("test").open(with_seconds(10)).run(work())
    await mesh.idle()
    assert now() < 2.0


@in_virtual_time
async def test_options_travel() -> None:
    mesh, client = mesh_and_client()
    finished = await client.answer(
        "Calculate 2 * 21 and count the words of 'a b c'",
        model="fast",
        tools=["calculate"],
        request_id="mine",
        max_iterations=1,
    )
    assert (finished.iterations, finished.usage.tool_calls) == (1, 0)
    run = (await client.list_runs()).runs[0]
    assert (run.request_id, run.model) == ("mine", "fast")
    attached = [event async for event in client.run("ignored", request_id="mine")]
    assert attached[0].started.attached
    assert attached[-1].finished == finished
    await mesh.idle()


@in_virtual_time
async def test_a_conversation_goes_on_from_its_messages() -> None:
    _, client = mesh_and_client()
    await client.answer("Calculate 2 * 21", request_id="first")
    run_id = (await client.list_runs()).runs[0].run_id
    known = await client.get_run(run_id)
    assert known.run.state == orchestrator_pb2.RUN_STATE_FINISHED
    assert len(known.messages) > 2
    finished = await client.answer("thanks", history=known.messages[1:])
    assert finished.outcome == orchestrator_pb2.OUTCOME_COMPLETED


@in_virtual_time
async def test_cancel_run_returns_the_run_when_it_has_stopped() -> None:
    _, client = mesh_and_client()
    async with aclosing(client.run(LONG)) as events:
        run_id = (await anext(events)).started.run_id
        run = await client.cancel_run(run_id)
        assert run.finished.outcome == orchestrator_pb2.OUTCOME_CANCELLED


@in_virtual_time
async def test_refusals_are_the_meshs_errors() -> None:
    mesh, client = mesh_and_client()
    with pytest.raises(NotFound) as unknown:
        await client.answer("hello", model="nope")
    assert [violation.field for violation in unknown.value.violations] == ["model"]
    assert "one of demo, fast" in str(unknown.value)
    with pytest.raises(InvalidRequest) as empty:
        await client.answer(" ")
    assert [violation.field for violation in empty.value.violations] == ["prompt"]
    with pytest.raises(NotFound):
        await client.get_run("run_of_nobody")
    with pytest.raises(NotFound):
        await client.cancel_run("run_of_nobody")
    with pytest.raises(InvalidRequest):
        await client.list_runs(page_size=-1)
    with pytest.raises(Doomed):
        await client.answer("hello", deadline=0.05)
    with pytest.raises(Unauthenticated):
        await DeadlineMesh(api_key="nobodys", channel=mesh.channel).answer("hello")


class Replaying(grpc.aio.Channel):
    """A channel whose streams give `events` and then fail with `code`, or end. It takes `connecting` seconds to connect."""

    def __init__(
        self, events: list[orchestrator_pb2.RunResponse], code: grpc.StatusCode | None, connecting: float = 0.0
    ) -> None:
        self._events, self._code, self._connecting = events, code, connecting
        self.sent: list[tuple[float | None, dict[str, str]]] = []
        """The timeout and the metadata of each call."""

    def unary_stream(self, *_: Any, **__: Any) -> Any:
        def call(request: Any, *, timeout: float | None = None, metadata: Any) -> Any:
            self.sent.append((timeout, dict(metadata)))
            return self

        return call

    def unary_unary(self, *_: Any, **__: Any) -> Any:
        return None

    stream_unary = stream_stream = unary_unary

    async def __aiter__(self) -> AsyncIterator[orchestrator_pb2.RunResponse]:
        for event in self._events:
            yield event
        if self._code is not None:
            raise grpc.aio.AioRpcError(self._code, grpc.aio.Metadata(), grpc.aio.Metadata(), "late")

    def cancel(self) -> bool:
        return False

    def done(self) -> bool:
        return True

    async def close(self, grace: float | None = None) -> None: ...
    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return grpc.ChannelConnectivity.CONNECTING if self._connecting else grpc.ChannelConnectivity.READY

    async def wait_for_state_change(self, last_observed_state: Any) -> None:
        await asyncio.sleep(self._connecting)
        self._connecting = 0.0

    async def channel_ready(self) -> None: ...
    async def __aenter__(self) -> Any: ...
    async def __aexit__(self, *_: object) -> None: ...


FINISHED = orchestrator_pb2.RunResponse(finished=orchestrator_pb2.RunFinished(answer="just in time"))


@in_virtual_time
async def test_an_answer_outlives_a_late_status() -> None:
    client = DeadlineMesh(api_key="k", channel=Replaying([FINISHED], grpc.StatusCode.DEADLINE_EXCEEDED))
    assert (await client.answer("hello")).answer == "just in time"


@in_virtual_time
async def test_without_an_answer_the_status_is_an_error() -> None:
    client = DeadlineMesh(api_key="k", channel=Replaying([], grpc.StatusCode.DEADLINE_EXCEEDED))
    with pytest.raises(DeadlineSpentUpstream):
        await client.answer("hello")
    client = DeadlineMesh(api_key="k", channel=Replaying([], None))
    with pytest.raises(UpstreamFailed, match="the stream ended before the run did"):
        await client.answer("hello")


@in_virtual_time
async def test_a_deadline_is_sent_exactly_too() -> None:
    channel = Replaying([FINISHED], None)
    client = DeadlineMesh(api_key="k", channel=channel)
    for deadline in (20.0, 0.0002, 0.0, -1.0, 1e12):
        await client.answer("hello", deadline=deadline)
    assert [metadata["deadline-remaining-us"] for _, metadata in channel.sent] == [
        "19999850",
        "50",
        "0",
        "0",
        "31622399999850",
    ]
    assert {metadata["authorization"] for _, metadata in channel.sent} == {"Bearer k"}


@in_virtual_time
async def test_no_exact_value_is_sent_without_a_deadline() -> None:
    channel = Replaying([FINISHED], None)
    client = DeadlineMesh(api_key="k", channel=channel)
    await client.answer("hello", deadline=20.0)
    await client.answer("hello")
    assert channel.sent[-1] == (None, {"authorization": "Bearer k"})


@pytest.mark.parametrize(("connecting", "timeout", "exact"), [(0.5, 1.5, "1499850"), (3.0, 0.0, "0")])
@in_virtual_time
async def test_time_spent_on_connecting_is_not_sent(connecting: float, timeout: float, exact: str) -> None:
    channel = Replaying([FINISHED], None, connecting)
    client = DeadlineMesh(api_key="k", channel=channel)
    await client.answer("hello", deadline=2.0)
    assert channel.sent == [(timeout, {"authorization": "Bearer k", "deadline-remaining-us": exact})]


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("localhost:50051", True),
        ("localhost", True),
        ("127.0.0.1:1", True),
        ("127.8.0.1:1", True),
        ("[::1]:50051", True),
        ("::1", True),
        ("ipv4:127.0.0.1:50051", True),
        ("ipv6:[::1]:50051", True),
        ("dns:///localhost:50051", True),
        ("dns://8.8.8.8/localhost:50051", True),
        ("unix:/run/mesh.sock", True),
        ("10.0.0.1:50051", False),
        ("localhost.example.com:50051", False),
        ("127.0.0.1.example.com:50051", False),
        ("dns:///mesh.example.com:50051", False),
        ("", False),
    ],
)
def test_only_this_machine_is_spoken_to_in_plain_text(address: str, local: bool) -> None:
    assert is_loopback(address) is local


@pytest.mark.parametrize("method", ["answer", "list_runs"])
async def test_closing_the_client_is_told_to_those_who_wait_and_does_not_pass_for_their_own_cancel(method: str) -> None:
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)  # which never answers
    client = DeadlineMesh(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", api_key="k")
    arguments = ("hello",) if method == "answer" else ()
    waiting = asyncio.ensure_future(getattr(client, method)(*arguments, deadline=60.0))
    await asyncio.sleep(0)
    await client.close()
    with pytest.raises(ClientCancelled, match="the client was closed"):
        await waiting
    another = asyncio.ensure_future(getattr(client, method)(*arguments, deadline=60.0))
    await asyncio.sleep(0)
    another.cancel()
    with pytest.raises(asyncio.CancelledError):
        await another
    await client.close()
    server.close()


async def test_a_key_may_have_the_line_end_of_its_file() -> None:
    async with DeadlineMesh("127.0.0.1:1", api_key="key\n") as client:
        with pytest.raises(UpstreamFailed, match="UNAVAILABLE"):
            await client.list_runs(deadline=5)


@pytest.mark.parametrize("key", ["ke\ny", "schlüssel", "k\0"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(ValueError, match="in one line") as refused:
        DeadlineMesh(api_key=key)
    assert key not in str(refused.value)


async def test_a_deadline_beyond_what_grpc_can_count_is_long_and_not_spent() -> None:
    for deadline in (float("inf"), 1e12):
        async with DeadlineMesh("127.0.0.1:1", api_key="k") as client:
            with pytest.raises(UpstreamFailed, match="UNAVAILABLE"):
                await client.list_runs(deadline=deadline)


async def test_a_deadline_that_is_no_number_is_refused() -> None:
    async with DeadlineMesh("127.0.0.1:1", api_key="k") as client:
        with pytest.raises(ValueError, match="not nan"):
            await client.answer("hello", deadline=float("nan"))


def test_credentials_contradict_plain_text() -> None:
    with pytest.raises(ValueError, match="contradict"):
        DeadlineMesh(api_key="k", plaintext=True, credentials=grpc.ssl_channel_credentials())


def test_the_client_needs_nothing_of_the_servers_requirements() -> None:
    forbidden = {"pydantic", "yaml", "httpx", "openai", "rich", "typer", "starlette", "jsonschema"}
    # grpc itself imports grpc_reflection where it is installed, but nothing below it.
    forbidden |= {"grpc_reflection.v1alpha", "opentelemetry.sdk"}
    code = "import sys, deadlinemesh.client; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not forbidden & set(loaded)
