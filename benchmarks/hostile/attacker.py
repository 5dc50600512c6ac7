"""One hostile client: whom it attacks, how fast, and the connections it holds while it does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from benchmarks.hostile.raw_peer import RawPeer

__all__ = ["Attacker", "Call", "Target"]

RECONNECTS_PER_S = 20.0
"""At most so often an attack makes a connection in place of one that the server has closed."""

COARSE_S = 0.002
"""Waits shorter than this are not worth a timer."""

MOST_BEHIND_S = 0.1
"""Of what an attack could not send in time it makes up for no more than this."""

BURST = 32
"""Units that are sent in one go where there is no time to wait for."""


@dataclass(frozen=True, slots=True)
class Call:
    """A method's path and a serialized request."""

    path: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Target:
    """A service under attack, and what a tenant or peer can call there."""

    port: int
    metadata: tuple[tuple[str, str], ...]
    """What authenticates a caller, the attacker being a tenant too."""
    unary: Call
    streamed: Call
    """One with a long reply."""


class Attacker:
    """Context manager. Sends units at `per_s`, and at most `count` of them; its connections are closed with it."""

    def __init__(self, target: Target, per_s: float, count: int | None = None) -> None:
        self.target = target
        self.sent = 0
        """Units so far."""
        self._count = count
        self._apart = 1 / per_s
        self._due = time.monotonic() - self._apart
        self._peers: list[RawPeer] = []
        self._channels: list[Any] = []

    async def __aenter__(self) -> Attacker:
        return self

    async def __aexit__(self, *_: object) -> None:
        for peer in self._peers:
            await peer.close()
        for channel in self._channels:
            await channel.close()

    @property
    def peers(self) -> tuple[RawPeer, ...]:
        """The connections that have not been closed."""
        self._peers = [peer for peer in self._peers if peer.is_open]
        return tuple(self._peers)

    @property
    def is_spent(self) -> bool:
        """Whether all units have been sent."""
        return self.sent == self._count

    async def turn(self, peer: RawPeer | None = None) -> bool:
        """Wait until the next unit is due. False if there is none, or `peer` is closed."""
        if peer is not None:
            await peer.flush()
        if self.is_spent or (peer is not None and not peer.is_open):
            return False
        now = time.monotonic()
        self._due = max(self._due + self._apart, now - MOST_BEHIND_S)
        if self._due - now > COARSE_S:
            await asyncio.sleep(self._due - now)
        elif self.sent % BURST == 0:
            await asyncio.sleep(0)
        self.sent += 1
        return True

    async def connect(self, **options: Any) -> RawPeer:
        """A connection that is held to the end; see RawPeer.connect."""
        peer = await RawPeer.connect(self.target.port, **options)
        self._peers.append(peer)
        return peer

    async def connections(self, **options: Any) -> AsyncIterator[RawPeer]:
        """A connection, and another whenever the server has closed it, until all units are sent."""
        while not self.is_spent:
            try:
                yield await self.connect(**options)
            except OSError:  # it listens no longer, or takes no more
                self._peers = list(self.peers)
            await asyncio.sleep(1 / RECONNECTS_PER_S)

    def hold(self, channel: Any) -> None:
        """Have a gRPC channel closed in the end."""
        self._channels.append(channel)
