"""What a connection may ask for before it has shown a credential."""

from __future__ import annotations

from deadlinemesh.deadline import VirtualClock
from deadlinemesh.transport.peers import CALLS, CALLS_PER_SECOND, Peers


def test_stranger_may_make_some_calls() -> None:
    peers = Peers(VirtualClock())
    for _ in range(int(CALLS)):
        peers.charge("a", 1.0)
    assert not peers.excessive
    peers.charge("a", 1.0)
    assert peers.excessive == {"a"}


def test_excess_is_told_once() -> None:
    told: list[None] = []
    peers = Peers(VirtualClock(), lambda: told.append(None))
    for _ in range(3):
        peers.charge("a", CALLS + 1)
    assert len(told) == 1


def test_calls_are_earned_back_with_time() -> None:
    clock = VirtualClock()
    peers = Peers(clock)
    peers.charge("a", CALLS)
    clock.advance(1.0)
    peers.charge("a", CALLS_PER_SECOND)
    assert not peers.excessive


def test_known_connection_is_never_charged() -> None:
    peers = Peers(VirtualClock())
    peers.know("a")
    peers.charge("a", CALLS + 1)
    assert not peers.excessive


def test_strangers_do_not_share_an_account() -> None:
    peers = Peers(VirtualClock())
    peers.charge("a", CALLS)
    peers.charge("b", CALLS)
    assert not peers.excessive


def test_connection_is_forgotten_when_missed_twice() -> None:
    peers = Peers(VirtualClock())
    peers.know("a")
    peers.keep(set())
    assert peers.is_known("a")  # it may have come after the look
    peers.keep({"a"})
    peers.keep(set())
    assert peers.is_known("a")
    peers.keep(set())
    assert not peers.is_known("a")


def test_excess_is_forgotten_with_its_connection() -> None:
    peers = Peers(VirtualClock())
    peers.charge("a", CALLS + 1)
    peers.keep(set())
    peers.keep(set())
    assert not peers.excessive


def test_condemned_peer_is_told_whoever_it_is() -> None:
    peers = Peers(VirtualClock())
    peers.know("a")
    peers.condemn("a")
    assert peers.excessive == {"a"}
