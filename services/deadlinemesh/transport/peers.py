"""The connections that have shown a known credential, and the calls of all others.

An unknown connection is one that has not shown a known credential.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Set
from math import inf

from deadlinemesh.deadline import Clock

__all__ = ["Peers"]

CALLS = 100.0
"""Calls that an unknown connection may make at once."""

CALLS_PER_SECOND = 10.0
"""Further calls each second that an unknown connection may make."""

REFUSED_CALL = 3.0
"""Calls that one refused call counts as."""


class Peers:
    """The connections of one hop, by gRPC's name for the peer.

    `on_excess` is called when an unknown connection has asked for too much. `on_condemned` is
    called with a connection that has sent data that no well-meaning peer sends.

    A known connection stays known: a proxy has many callers on one connection.
    """

    def __init__(self, clock: Clock, on_excess: Callable[[], None] = lambda: None) -> None:
        self.on_excess = on_excess
        self.on_condemned: Callable[[str], None] = lambda _: on_excess()
        self.excessive: set[str] = set()
        """Connections to close: unknown ones that asked for too much, and condemned ones."""
        self.watches: Counter[str] = Counter()
        """Open `Health/Watch` calls of each connection."""
        self.in_doubt = False
        """True while some address has more than FEW connections: unknown ones may then
        be closed.
        """
        self._clock = clock
        self._known: set[str] = set()
        self._asked: dict[str, tuple[float, float]] = {}
        """For each unknown connection: the calls it has used up, and the instant of that
        computation.
        """
        self._missed: set[str] = set()

    def know(self, peer: str) -> None:
        """Record that the connection has shown a known credential."""
        self._known.add(peer)

    def is_known(self, peer: str) -> bool:
        """True if the connection has shown a known credential."""
        return peer in self._known

    def asked_at(self, peer: str) -> float:
        """The instant at which the unknown connection last asked for something; -inf if
        it has not.
        """
        return self._asked.get(peer, (0.0, -inf))[1]

    def charge(self, peer: str, calls: float) -> None:
        """Charge `calls` calls to the connection, unless it is known."""
        if peer in self._known:
            return
        now = self._clock.monotonic()
        used, at = self._asked.get(peer, (0.0, now))
        used = max(0.0, used - (now - at) * CALLS_PER_SECOND) + calls
        self._asked[peer] = used, now
        if used > CALLS and peer not in self.excessive:
            self.excessive.add(peer)
            self.on_excess()

    def condemn(self, peer: str) -> None:
        """Record that the connection, known or not, has sent data that no well-meaning
        peer sends.
        """
        if peer not in self.excessive:
            self.excessive.add(peer)
            self.on_condemned(peer)

    def keep(self, connected: Set[str]) -> None:
        """Forget connections that are gone, the second time that they are missed: a connection may
        be newer than the set `connected`.
        """
        missed = (self._known | self._asked.keys() | self.excessive) - connected
        gone, self._missed = missed & self._missed, missed
        self._known -= gone
        self.excessive -= gone
        for peer in gone:
            self._asked.pop(peer, None)
