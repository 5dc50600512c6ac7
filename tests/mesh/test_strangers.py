"""What peers cost that do not send what they began, do not read what they asked for, or have no credential."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from benchmarks.hostile.raw_peer import END_STREAM, Kind, RawPeer, frame, literal, message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.support.rpc import REQUEST, SERVICE, TOKEN, begin, handler, methods, serving, within_bounds

from deadlinemesh.telemetry import CallRefused, ConnectionClosed, OrphanReported
from deadlinemesh.transport import Admitted, Arrival, DeadlineInterceptor, MeshGate
from deadlinemesh.transport.inbound import LARGEST_HEADERS, MOST_HEADERS
from deadlinemesh.transport.open_calls import MOST_BRIEF, WATCHES_PER_CONNECTION
from deadlinemesh.transport.requests import READ_AT_ONCE, READ_IN_ALL

BUDGET_S = 0.5
NO_WINDOW = 0
SOON_S = 0.1
INVALID_ARGUMENT, UNIMPLEMENTED, UNAVAILABLE, UNAUTHENTICATED = "3", "12", "14", "16"
WATCH = "/grpc.health.v1.Health/Watch"
LARGE = bytes(1_000_000)
PEER = (("mesh-identity", f"token={TOKEN};tenant=acme;tier=free;run=run-1;trace="),)


def budget(arrival: Arrival) -> Admitted:
    """A gate that grants BUDGET_S where the caller asks for no less."""
    if arrival.remaining is None:
        arrival.remaining = BUDGET_S
    return MeshGate("hop-a", TOKEN)(arrival)


async def large(request: bytes, context: Any) -> bytes:
    return LARGE


async def watched(request: bytes, context: Any) -> bytes:
    context.add_done_callback(lambda _: None)
    return LARGE


async def streamed(request: bytes, context: Any) -> AsyncIterator[bytes]:
    for _ in range(3):
        yield LARGE


HANDLERS = {
    "unary": handler("unary_unary", large),
    "watched": handler("unary_unary", watched),
    "streamed": handler("unary_stream", streamed),
}


def live_calls(hop: Any) -> int:
    return len(hop.interceptor.stragglers)


@pytest.mark.parametrize("timeout", [None, f"{int(BUDGET_S * 1000)}m"], ids=["without timeout", "with timeout"])
@pytest.mark.parametrize("method", HANDLERS)
async def test_unread_reply_ends_with_its_deadline(method: str, timeout: str | None) -> None:
    async with serving(HANDLERS, gate=budget) as hop:
        peer = await RawPeer.connect(hop.server.port, window=NO_WINDOW)
        metadata = PEER if timeout is None else (*PEER, ("grpc-timeout", timeout))
        calls = [peer.call(f"/{SERVICE}/{method}", metadata, REQUEST) for _ in range(20)]
        await within_bounds(asyncio.gather(*(call.ended() for call in calls)))
        await hop.facts.see(OrphanReported, len(calls))
        reported = hop.facts.seen(OrphanReported)
        assert len(reported) == len(calls)
        assert {(one.tenant_id, one.run_id) for one in reported} == {("acme", "run-1")}
        assert all(one.age < 0.25 for one in reported)
        await within_bounds(emptied(hop))
        await peer.close()


async def test_reply_that_is_read_is_no_orphan() -> None:
    async with serving(HANDLERS, gate=budget) as hop:
        peer = await RawPeer.connect(hop.server.port)
        calls = [peer.call(f"/{SERVICE}/{method}", PEER, REQUEST) for method in HANDLERS]
        await within_bounds(asyncio.gather(*(call.ended() for call in calls)))
        assert {call.status for call in calls} == {"0"}
        assert not hop.facts.seen(OrphanReported)
        await peer.close()


async def test_first_message_unread_ends_a_handler() -> None:
    """No scope may cut what is sent first, so it is the call that ends."""
    began = asyncio.Event()

    async def writes(request: bytes, context: Any) -> None:
        began.set()
        await context.write(LARGE)
        await context.write(LARGE)

    async with serving({"writes": handler("unary_stream", writes)}, gate=budget) as hop:
        peer = await RawPeer.connect(hop.server.port, window=NO_WINDOW)
        call = peer.call(f"/{SERVICE}/writes", PEER, REQUEST)
        await within_bounds(began.wait())
        await within_bounds(call.ended())
        await within_bounds(hop.interceptor.scopes.emptied())
        await hop.facts.see(OrphanReported)
        await peer.close()


async def test_stranger_is_refused_by_its_headers() -> None:
    async with serving(methods()) as hop:
        peer = await RawPeer.connect(hop.server.port)
        call = peer.begin(f"/{SERVICE}/unary_unary")  # and no message, ever
        await within_bounds(call.ended())
        assert call.status == UNAUTHENTICATED
        await peer.close()


async def test_stranger_that_asks_on_is_closed() -> None:
    async with serving(methods()) as hop:
        peer = await RawPeer.connect(hop.server.port)
        for _ in range(200):
            peer.begin(f"/{SERVICE}/unary_unary")
        await within_bounds(peer.closed.wait())
        closed = await hop.facts.see(ConnectionClosed)
        assert closed.why == "calls"


async def test_peer_with_a_credential_is_not_closed() -> None:
    async with serving(methods()) as hop:
        peer = await RawPeer.connect(hop.server.port)
        good = peer.call(f"/{SERVICE}/unary_unary", (*PEER, ("grpc-timeout", "20S")), REQUEST)
        await within_bounds(good.ended())
        bad = [peer.begin(f"/{SERVICE}/unary_unary") for _ in range(200)]
        await within_bounds(asyncio.gather(*(call.ended() for call in bad)))
        assert {call.status for call in bad} == {UNAUTHENTICATED}
        assert peer.is_open
        await peer.close()


async def test_request_that_does_not_come_is_refused() -> None:
    async with serving(methods(), request_seconds=SOON_S) as hop:
        peer = await RawPeer.connect(hop.server.port)
        call = peer.begin(f"/{SERVICE}/unary_unary", (*PEER, ("grpc-timeout", "20S")))
        await within_bounds(call.ended())
        assert call.status == INVALID_ARGUMENT
        await within_bounds(hop.interceptor.scopes.emptied())
        await peer.close()


async def test_request_that_is_no_message_is_refused() -> None:
    """It is the caller's mistake, so it has neither UNKNOWN nor a traceback."""
    behaviour: Any = methods()["unary_unary"].unary_unary
    method: Any = grpc.unary_unary_rpc_method_handler(
        behaviour, request_deserializer=health_pb2.HealthCheckRequest.FromString
    )
    async with serving({"unary_unary": method}) as hop:
        peer = await RawPeer.connect(hop.server.port)
        for _ in range(2):  # the second time as one who has been believed before
            call = peer.call(f"/{SERVICE}/unary_unary", (*PEER, ("grpc-timeout", "20S")), b"\xff\xff\xff")
            await within_bounds(call.ended())
            assert call.status == INVALID_ARGUMENT
        await peer.close()


async def test_call_without_a_message_is_refused() -> None:
    async with serving(methods()) as hop:
        peer = await RawPeer.connect(hop.server.port)
        call = peer.begin(f"/{SERVICE}/unary_unary", (*PEER, ("grpc-timeout", "20S")))
        peer.send(frame(Kind.DATA, call.number, flags=END_STREAM))
        await within_bounds(call.ended())
        assert call.status == INVALID_ARGUMENT
        await peer.close()


async def test_watcher_that_does_not_read_holds_nothing_up() -> None:
    async with serving(methods(), drain=0.0) as hop:
        peer = await RawPeer.connect(hop.server.port, window=NO_WINDOW)
        stuck = peer.call(WATCH, (), b"")
        stub: Any = health_pb2_grpc.HealthStub(hop.raw)
        watching = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await within_bounds(watching.read())).status == health_pb2.HealthCheckResponse.SERVING
        draining = asyncio.ensure_future(hop.server.drain())
        assert (await within_bounds(watching.read())).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await within_bounds(draining)
        await within_bounds(stuck.ended())
        await peer.close()


async def test_unread_watch_is_ended() -> None:
    async with serving(methods()) as hop:
        peer = await RawPeer.connect(hop.server.port, window=NO_WINDOW)
        await within_bounds(peer.call(WATCH, (), b"").ended())
        assert not hop.interceptor.peers.watches
        await peer.close()


async def test_watches_of_a_connection_are_bounded() -> None:
    async with serving(methods()) as hop:
        peer = await RawPeer.connect(hop.server.port)
        calls = [peer.call(WATCH, (), b"") for _ in range(WATCHES_PER_CONNECTION + 1)]
        await within_bounds(calls[-1].ended())
        # By the protocol of health checks its client takes the server to be healthy.
        assert calls[-1].status == UNIMPLEMENTED
        assert all(call.ended_at is None for call in calls[:-1])
        await peer.close()


async def test_watches_in_all_are_bounded() -> None:
    async with serving(methods(), watches=2) as hop:
        peers = [await RawPeer.connect(hop.server.port) for _ in range(3)]
        for peer in peers[:2]:
            call = peer.call(WATCH, (), b"")
            while not call.received:  # noqa: ASYNC110  # the fact is the raw peer's
                await asyncio.sleep(0)
        refused = peers[2].call(WATCH, (), b"")
        await within_bounds(refused.ended())
        assert refused.status == UNIMPLEMENTED
        for peer in peers:
            await peer.close()


async def test_brief_open_calls_make_room() -> None:
    """Whoever begins health checks and never ends them keeps nobody else's from their answer."""
    async with serving(methods()) as hop:
        peers = [await RawPeer.connect(hop.server.port) for _ in range(8)]
        begun = [peers[number % 8].begin("/grpc.health.v1.Health/Check") for number in range(MOST_BRIEF + 1)]
        ends = [asyncio.ensure_future(call.ended()) for call in begun]
        await within_bounds(asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED))
        stub: Any = health_pb2_grpc.HealthStub(hop.raw)
        answer = await within_bounds(stub.Check(health_pb2.HealthCheckRequest()))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert live_calls(hop) <= MOST_BRIEF
        for end in ends:
            end.cancel()
        for peer in peers:
            await peer.close()


async def test_refusal_that_is_not_read_is_ended() -> None:
    async with serving(methods()) as hop:
        peer = await RawPeer.connect(hop.server.port, reads=False)
        peer.begin(f"/{SERVICE}/unary_unary")
        await hop.facts.see(CallRefused)
        await within_bounds(emptied(hop))
        await peer.close()


async def emptied(hop: Any) -> None:
    while live_calls(hop):  # noqa: ASYNC110  # the fact is in tasks of grpc.aio
        await asyncio.sleep(0.01)


class ByTurns:
    """A gate by which requests are read in their callers' turns; each identity's run names another tenant."""

    def __call__(self, arrival: Arrival) -> Admitted:
        arrival.by_turns = True
        return MeshGate("hop-a", TOKEN)(arrival)


def caller(tenant: str) -> tuple[tuple[str, str], ...]:
    return (("mesh-identity", f"token={TOKEN};tenant={tenant};tier=free;run=run-1;trace="), ("grpc-timeout", "20S"))


async def test_unsent_requests_hold_up_only_their_caller() -> None:
    async with serving(methods(), gate=ByTurns()) as hop:
        peer = await RawPeer.connect(hop.server.port)
        begun = [peer.begin(f"/{SERVICE}/unary_unary", caller("slow")) for _ in range(READ_AT_ONCE)]
        own = peer.call(f"/{SERVICE}/unary_unary", caller("slow"), REQUEST)
        others = peer.call(f"/{SERVICE}/unary_unary", caller("quick"), REQUEST)
        await within_bounds(others.ended())
        assert others.status == "0"
        assert own.ended_at is None
        peer.send(frame(Kind.DATA, begun[0].number, message(REQUEST), END_STREAM))
        await within_bounds(own.ended())
        assert own.status == "0"
        await peer.close()


async def test_request_unsent_for_longest_gives_way() -> None:
    async with serving(methods(), gate=ByTurns()) as hop:
        peer = await RawPeer.connect(hop.server.port)
        begun = [
            peer.begin(f"/{SERVICE}/unary_unary", caller(f"slow-{number // READ_AT_ONCE}"))
            for number in range(READ_IN_ALL)
        ]
        other = peer.call(f"/{SERVICE}/unary_unary", caller("quick"), REQUEST)
        await within_bounds(asyncio.gather(begun[0].ended(), other.ended()))
        assert (begun[0].status, other.status) == (INVALID_ARGUMENT, "0")
        assert begun[1].ended_at is None
        await peer.close()


async def test_drain_does_not_wait_for_requests() -> None:
    async with serving(methods()) as hop:
        peer = await RawPeer.connect(hop.server.port)
        call = peer.begin(f"/{SERVICE}/unary_unary", (*PEER, ("grpc-timeout", "20S")))
        while not live_calls(hop):  # noqa: ASYNC110  # the fact is in tasks of grpc.aio
            await asyncio.sleep(0)
        draining = asyncio.ensure_future(hop.server.drain())
        await within_bounds(call.ended())
        assert call.status == UNAVAILABLE
        await within_bounds(draining)
        await peer.close()


async def test_unknown_methods_are_no_way_to_ask_for_ever() -> None:
    async with serving(methods()) as hop:
        peer = await RawPeer.connect(hop.server.port)
        first = peer.begin("/no.Such/Method")
        await within_bounds(first.ended())
        assert first.status == UNIMPLEMENTED
        for number in range(200):
            peer.begin(f"/no.Such/Method{number}")
        await within_bounds(peer.closed.wait())


async def test_crowded_headers_end_the_connection() -> None:
    """Until it has acknowledged its settings, the core takes as many headers as a peer likes to send."""
    one = b"\x40" + literal("x-one", "x" * 1000)[1:]
    again = b"\xbe"  # the newest entry of the dynamic table
    async with serving(methods()) as hop:
        peer = await RawPeer.connect(hop.server.port, reads=False)
        peer.begin(f"/{SERVICE}/unary_unary", PEER, more=one + again * (MOST_HEADERS + 1))
        refused = await hop.facts.see(CallRefused)
        closed = await hop.facts.see(ConnectionClosed)
        assert (refused.code, closed.why) == ("INVALID_ARGUMENT", "calls")
        await peer.close()


@pytest.mark.parametrize(
    ("method", "size", "refused"),
    [("Health/Check", LARGEST_HEADERS + 1, True), ("Service/unary", LARGEST_HEADERS + 1, True), ("x", 1000, False)],
)
async def test_large_headers_reach_no_method(method: str, size: int, refused: bool) -> None:
    """The core itself refuses nearly all of them, so they are given to the interceptor here."""
    hop = DeadlineInterceptor("hop-a", MeshGate("hop-a", TOKEN))
    asked: list[Any] = []

    async def continuation(details: Any) -> None:
        asked.append(details)

    details: Any = SimpleNamespace(method=method, invocation_metadata=(("x-large", "x" * size),))
    await hop.intercept_service(continuation, details)
    assert bool(asked) is not refused


async def test_drain_loses_no_reply_that_is_on_its_way() -> None:
    async with serving({"unary_unary": handler("unary_unary", large)}) as hop:
        peer = await RawPeer.connect(hop.server.port, window=1000)
        call = peer.call(f"/{SERVICE}/unary_unary", (*PEER, ("grpc-timeout", "20S")), REQUEST)
        while not call.received:  # noqa: ASYNC110  # the fact is the raw peer's
            await asyncio.sleep(0)
        draining = asyncio.ensure_future(hop.server.drain())
        with pytest.raises(grpc.aio.AioRpcError):  # it drains
            await within_bounds(begin(hop.raw, "unary_unary"))
        peer.give_window(call.number, 10 * len(LARGE))
        await within_bounds(call.ended())
        assert (call.status, call.received) == ("0", len(LARGE) + 5)
        await within_bounds(draining)
        await peer.close()
