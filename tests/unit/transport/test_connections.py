"""Which connections are closed, and that those are closed."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from deadlinemesh.deadline import VirtualClock
from deadlinemesh.transport.connections import FEW, ConnectionLimits, ServerConnections, plain
from deadlinemesh.transport.peers import CALLS, Peers

LIMITS = ConnectionLimits(per_address=2, quiet_seconds=10.0)


class World:
    """Connections that are looked at when the test says so."""

    def __init__(self, limits: ConnectionLimits = LIMITS) -> None:
        self.clock = VirtualClock()
        self.peers = Peers(self.clock)
        self._connections = ServerConnections(1, limits, self.peers, self.clock, lambda address, why: None)

    def closed(self, *connected: str) -> dict[str, str]:
        return self._connections._too_many(set(connected))


ONE = "ipv4:1.1.1.1:1"
CROWD = tuple(f"ipv4:1.1.1.1:{port}" for port in range(2, FEW + 2))
QUIET = ConnectionLimits(per_address=0, quiet_seconds=10.0)


def made_to_ask(world: World, *peers: str) -> None:
    for peer in peers:
        world.peers.charge(peer, 1.0)


def test_quiet_stranger_is_closed_in_a_crowd() -> None:
    world = World(QUIET)
    assert world.closed(ONE, *CROWD) == {}
    world.clock.advance(10.1)
    made_to_ask(world, *CROWD)
    assert world.closed(ONE, *CROWD) == {ONE: "quiet"}


def test_few_strangers_may_be_quiet() -> None:
    world = World(QUIET)
    world.closed(ONE)
    world.clock.advance(1000.0)
    assert world.closed(ONE) == {}


def test_known_connection_may_be_quiet() -> None:
    world = World(QUIET)
    world.peers.know(ONE)
    world.closed(ONE, *CROWD)
    world.clock.advance(1000.0)
    made_to_ask(world, *CROWD)
    assert world.closed(ONE, *CROWD) == {}


def test_watcher_of_health_may_be_quiet() -> None:
    world = World(QUIET)
    world.peers.watches[ONE] = 1
    world.closed(ONE, *CROWD)
    world.clock.advance(1000.0)
    made_to_ask(world, *CROWD)
    assert world.closed(ONE, *CROWD) == {}


def test_stranger_that_asks_now_and_then_is_not_quiet() -> None:
    world = World(QUIET)
    for _ in range(5):
        made_to_ask(world, ONE, *CROWD)
        assert world.closed(ONE, *CROWD) == {}
        world.clock.advance(9.0)


def test_stranger_that_asks_too_much_is_closed() -> None:
    world = World()
    world.peers.charge("ipv4:1.1.1.1:1", CALLS + 1)
    assert world.closed("ipv4:1.1.1.1:1", "ipv4:1.1.1.1:2") == {"ipv4:1.1.1.1:1": "calls"}


def test_oldest_stranger_of_an_address_goes_first() -> None:
    world = World()
    world.closed("ipv4:1.1.1.1:1")
    world.clock.advance(1.0)
    world.closed("ipv4:1.1.1.1:1", "ipv4:1.1.1.1:2")
    world.clock.advance(1.0)
    found = world.closed("ipv4:1.1.1.1:1", "ipv4:1.1.1.1:2", "ipv4:1.1.1.1:3", "ipv4:2.2.2.2:1")
    assert found == {"ipv4:1.1.1.1:1": "connections"}


def test_newest_known_connection_goes_first() -> None:
    world = World()
    for number in (1, 2, 3):
        world.peers.know(f"ipv4:1.1.1.1:{number}")
    world.closed("ipv4:1.1.1.1:1", "ipv4:1.1.1.1:2")
    world.clock.advance(1.0)
    found = world.closed("ipv4:1.1.1.1:1", "ipv4:1.1.1.1:2", "ipv4:1.1.1.1:3")
    assert found == {"ipv4:1.1.1.1:3": "connections"}


def test_known_connections_outlast_strangers() -> None:
    world = World()
    world.closed("ipv4:1.1.1.1:1", "ipv4:1.1.1.1:2", "ipv4:1.1.1.1:3")
    world.peers.know("ipv4:1.1.1.1:1")
    world.peers.know("ipv4:1.1.1.1:2")
    assert set(world.closed("ipv4:1.1.1.1:1", "ipv4:1.1.1.1:2", "ipv4:1.1.1.1:3")) == {"ipv4:1.1.1.1:3"}


def test_zero_is_no_limit() -> None:
    world = World(ConnectionLimits(per_address=0))
    assert world.closed(*(f"ipv4:1.1.1.1:{port}" for port in range(1000))) == {}


def test_escaped_name_of_a_peer_is_made_plain() -> None:
    assert plain("ipv6:%5B::1%5D:50051") == "ipv6:[::1]:50051"


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


async def test_excess_closes_the_real_connection(listening: socket.socket) -> None:
    port = listening.getsockname()[1]
    clock, told = VirtualClock(), asyncio.Event()
    peers = Peers(clock)
    guard = asyncio.create_task(
        ServerConnections(
            port, LIMITS, peers, clock, lambda address, why: told.set() if why == "calls" else None
        ).guard()
    )
    with (
        socket.create_connection(("127.0.0.1", port)) as unwanted,
        socket.create_connection(("127.0.0.1", port)) as other,
    ):
        accepted, others = listening.accept()[0], listening.accept()[0]
        with accepted, others:
            await asyncio.sleep(0)  # the guard begins
            peers.charge(f"ipv4:127.0.0.1:{unwanted.getsockname()[1]}", CALLS + 1)
            async with asyncio.timeout(5):
                await told.wait()
            unwanted.settimeout(5)
            assert unwanted.recv(1) == b""
            other.setblocking(False)
            with pytest.raises(BlockingIOError):
                other.recv(1)
    guard.cancel()


def test_condemned_peer_is_cut_with_what_it_has_sent(listening: socket.socket) -> None:
    port = listening.getsockname()[1]
    peers, closed = Peers(VirtualClock()), list[str]()
    ServerConnections(port, LIMITS, peers, VirtualClock(), lambda address, why: closed.append(address))
    with (
        socket.create_connection(("127.0.0.1", port)) as unwanted,
        socket.create_connection(("127.0.0.1", port)) as other,
    ):
        accepted, others = listening.accept()[0], listening.accept()[0]
        with accepted, others:
            for peer, its in ((unwanted, accepted), (other, others)):
                peer.sendall(b"x" * 1000)
                its.settimeout(5)
                assert its.recv(1) == b"x"  # it has arrived
            peers.condemn(f"ipv4:127.0.0.1:{unwanted.getsockname()[1]}")
            assert accepted.recv(1) == b""
            assert len(others.recv(1000)) == 999
            unwanted.settimeout(5)
            assert unwanted.recv(1) == b""
    assert closed == ["127.0.0.1"]
