"""The inbound connections of a server, and the closing of those beyond its limits.

The core limits the number of all connections. It has no limit for one address, and none for the
behaviour of unknown peers: it leaves both to proxies. This process can shut down one of its sockets
itself. The core then sees the same as if the peer had left.

An unknown connection is one that has not shown a known credential.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import unquote

from deadlinemesh.deadline import Clock
from deadlinemesh.transport.peers import Peers

__all__ = ["ConnectionLimits", "ServerConnections"]

LOOK_EVERY_S = 1.0
"""Seconds between two checks of all connections."""

FEW = 16
"""Connections of one address. Up to this number none is closed for being quiet, because a client
may connect long before its first call.
"""

LOOK_AGAIN_S = 0.05
"""Seconds between two checks while unknown connections ask for too much."""

_OPEN_FILES = "/proc/self/fd"
_KNOWN_HERE = os.path.isdir(_OPEN_FILES)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits on the connections of a server."""

    per_address: int = 512
    """Connections of one address; 0 for no limit, if a proxy in front of the server counts them."""
    quiet_seconds: float = 15.0
    """Seconds that an unknown connection may stay without a call, if its address has more than FEW.
    A connection with an open `Health/Watch` may stay.
    """


class ServerConnections:
    """Closes connections at `port` beyond `limits`, unknown ones first. Calls `on_closed(address,
    why)` for each.

    Finds connections only on systems with `/proc`. Elsewhere it closes none.
    """

    def __init__(
        self, port: int, limits: ConnectionLimits, peers: Peers, clock: Clock, on_closed: Callable[[str, str], None]
    ) -> None:
        self._port = port
        self._limits = limits
        self._peers = peers
        self._clock = clock
        self._on_closed = on_closed
        self._seen_at: dict[str, float] = {}
        """The instant at which each connection was first seen."""
        self._excess = asyncio.Event()
        peers.on_excess = self._excess.set
        self._closed_at = -math.inf
        peers.on_condemned = self._close_at_once

    async def guard(self) -> None:
        """Check all connections repeatedly, until cancelled."""
        while _KNOWN_HERE:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._excess.wait()
            self._excess.clear()
            # In a thread, because a thousand connections take 10 ms.
            connected = await asyncio.to_thread(_connected, self._port)
            why = self._too_many(connected)
            if why:
                await asyncio.to_thread(_shut, self._port, why.keys())
                for peer, reason in why.items():
                    self._on_closed(_address(peer), reason)
            await asyncio.sleep(LOOK_AGAIN_S)

    def _close_at_once(self, peer: str) -> None:
        """Close a connection before the rest of its data is read.

        This runs on the event loop and stops it for 10 ms if there are a thousand connections. So a
        second one within LOOK_AGAIN_S waits for the next check.
        """
        now = self._clock.monotonic()
        if not _KNOWN_HERE or now - self._closed_at < LOOK_AGAIN_S:
            self._excess.set()
            return
        self._closed_at = now
        _shut(self._port, (peer,))
        self._on_closed(_address(peer), "calls")

    def _too_many(self, connected: set[str]) -> dict[str, str]:
        """The connections to close, each with the reason."""
        peers, now = self._peers, self._clock.monotonic()
        peers.keep(connected)
        self._seen_at = {peer: self._seen_at.get(peer, now) for peer in connected}
        why = {}
        by_address: defaultdict[str, list[str]] = defaultdict(list)
        for peer in connected:
            if peer in peers.excessive:
                why[peer] = "calls"
            else:
                by_address[_address(peer)].append(peer)
        peers.in_doubt = any(len(at_once) > FEW for at_once in by_address.values())
        for at_once in by_address.values():
            if len(at_once) > FEW:
                why.update((peer, "quiet") for peer in at_once if self._is_quiet(peer, now))
                at_once = [peer for peer in at_once if peer not in why]
            if 0 < self._limits.per_address < len(at_once):
                at_once.sort(key=self._worth)
                why.update(dict.fromkeys(at_once[: len(at_once) - self._limits.per_address], "connections"))
        return why

    def _is_quiet(self, peer: str, now: float) -> bool:
        if self._peers.is_known(peer) or self._peers.watches[peer]:
            return False
        return now - max(self._seen_at[peer], self._peers.asked_at(peer)) > self._limits.quiet_seconds

    def _worth(self, peer: str) -> tuple[bool, float]:
        """Sort key for one address; the first are closed first. Unknown connections come first, the
        oldest first. Known ones follow, the newest first.
        """
        known, at = self._peers.is_known(peer), self._seen_at[peer]
        return known, -at if known else at


def _connected(port: int) -> set[str]:
    """The peers of all connections that this process has accepted at `port`, by gRPC's names."""
    found = set()
    for peer, connection in _accepted(port):
        connection.close()
        found.add(peer)
    return found


def _shut(port: int, peers: Iterable[str]) -> None:
    """Shut these connections down, and discard the data that the core has not read from
    them yet.
    """
    left = set(peers)
    for peer, connection in _accepted(port):
        with connection, suppress(OSError):
            if peer in left:
                left.remove(peer)
                connection.shutdown(socket.SHUT_RDWR)
                while connection.recv(1 << 20, socket.MSG_DONTWAIT):
                    pass
        if not left:
            return


def _accepted(port: int) -> Iterable[tuple[str, socket.socket]]:
    for name in os.listdir(_OPEN_FILES):
        try:
            # The duplicate refers to the same socket, even if the core closes its own descriptor
            # meanwhile.
            duplicate = os.dup(int(name))
        except OSError:
            continue
        try:
            connection = socket.socket(fileno=duplicate)
        except OSError:  # another kind of file
            os.close(duplicate)
            continue
        try:
            if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.getsockname()[1] == port:
                yield _named(*connection.getpeername()[:2]), connection
                continue
        except OSError:  # a listening socket, or the peer has left
            pass
        connection.close()


def _named(address: str, port: int) -> str:
    address = address.removeprefix("::ffff:")
    return f"ipv6:[{address}]:{port}" if ":" in address else f"ipv4:{address}:{port}"


def _address(peer: str) -> str:
    return peer.partition(":")[2].rpartition(":")[0]


def plain(peer: str) -> str:
    """gRPC's name of a peer, without the percent escapes of IPv6 addresses."""
    return unquote(peer) if "%" in peer else peer
