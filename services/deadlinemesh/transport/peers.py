"""Which connections have shown a credential that is known, and how much the others have asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Set
from math import inf

from deadlinemesh.deadline import Clock

__all__ = ["Peers"]

CALLS = 100.0
"""Calls that a connection may make, one after the other, before it has shown a credential."""

CALLS_PER_SECOND = 10.0
"""And how many more each second."""

REFUSED_CALL = 3.0
"""A refused call counts as so many."""


class Peers:
    """The connections of one hop, by gRPC's name for the peer. `on_excess` is called when a stranger has asked for too much, and
    `on_condemned` with a connection that has sent what no well-meaning peer sends.

    A connection that has shown a known credential is never a stranger's again: a proxy has many callers on one.
    """

    def __init__(self, clock: Clock, on_excess: Callable[[], None] = lambda: None) -> None:
        self.on_excess = on_excess
        self.on_condemned: Callable[[str], None] = lambda _: on_excess()
        self.excessive: set[str] = set()
        """Connections that have asked for too much."""
        self.watches: Counter[str] = Counter()
        """Open `Health/Watch` calls of each connection."""
        self.in_doubt = False
        """True while some address has more connections than FEW: unknown ones may be closed."""
        self._clock = clock
        self._known: set[str] = set()
        self._asked: dict[str, tuple[float, float]] = {}
        """What each stranger has used up of its calls, and when that was computed."""
        self._missed: set[str] = set()

    def know(self, peer: str) -> None:
        """The connection has shown a known credential."""
        self._known.add(peer)

    def is_known(self, peer: str) -> bool:
        """Whether the connection has shown a known credential."""
        return peer in self._known

    def asked_at(self, peer: str) -> float:
        """When the stranger last asked for something; -inf where it has not."""
        return self._asked.get(peer, (0.0, -inf))[1]

    def charge(self, peer: str, calls: float) -> None:
        """The connection has asked for something without a known credential."""
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
        """The connection, whoever's it is, has sent what no well-meaning peer sends."""
        if peer not in self.excessive:
            self.excessive.add(peer)
            self.on_condemned(peer)

    def keep(self, connected: Set[str]) -> None:
        """Forget the connections that are gone, the second time that they are missed: a new one may have come after the look."""
        missed = (self._known | self._asked.keys() | self.excessive) - connected
        gone, self._missed = missed & self._missed, missed
        self._known -= gone
        self.excessive -= gone
        for peer in gone:
            self._asked.pop(peer, None)
