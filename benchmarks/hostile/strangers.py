"""Attacks with frames: what anybody can send who reaches a service's port, with a key or without.

Each is a coroutine function that sends one unit for each turn of its attacker and returns once all are sent; what it has opened
stays open.
"""

from __future__ import annotations

import os
from itertools import cycle

from benchmarks.hostile.attacker import Attacker
from benchmarks.hostile.raw_peer import (
    END_HEADERS,
    END_STREAM,
    LARGEST_WINDOW,
    PREFACE,
    Kind,
    RawPeer,
    frame,
    literal,
    message,
    request,
    settings,
)

__all__ = [
    "broken_frames",
    "continuation_flood",
    "empty_data",
    "endless_trailers",
    "garbage",
    "half_messages",
    "headers_only",
    "hpack_bombs",
    "large_headers",
    "many_headers",
    "overrun_windows",
    "ping_flood",
    "priority_flood",
    "promised_messages",
    "rapid_reset",
    "rapid_reset_of_calls",
    "settings_flood",
    "silent_connections",
    "slow_bytes",
    "unread_pings",
    "unread_settings",
    "unread_streams",
    "unread_unary",
    "watch_many",
    "watch_without_window",
    "window_overflow",
]

WATCH = "/grpc.health.v1.Health/Watch"
SLOW_CONNECTIONS = 50
"""Connections whose bytes come one at a time, each at another place of the same beginning."""
PROMISED_BYTES = 4 * 1024 * 1024 - 1
CLIENT_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(range(193))
"""As TLS begins, to a server that does not speak it."""


async def watch_without_window(attacker: Attacker) -> None:
    """Health/Watch with a receive window of 0."""
    async for peer in attacker.connections(window=0):
        while await attacker.turn(peer):
            peer.call(WATCH, (), b"")


async def watch_many(attacker: Attacker) -> None:
    """Health/Watch, read as it should be, more and more of them on one connection."""
    async for peer in attacker.connections():
        while await attacker.turn(peer):
            peer.call(WATCH, (), b"")


async def headers_only(attacker: Attacker) -> None:
    """Streams with headers and nothing else, without a key."""
    async for peer in attacker.connections():
        while await attacker.turn(peer):
            peer.begin(attacker.target.unary.path)


async def half_messages(attacker: Attacker) -> None:
    """Calls with half of their message."""
    half = message(bytes(1000))[:500]
    async for peer in attacker.connections():
        while await attacker.turn(peer):
            stream = peer.begin(attacker.target.unary.path, attacker.target.metadata)
            peer.send(frame(Kind.DATA, stream.number, half))


async def promised_messages(attacker: Attacker) -> None:
    """Calls with the length of a message of 4 MB and nothing of it."""
    prefix = b"\x00" + PROMISED_BYTES.to_bytes(4)
    async for peer in attacker.connections():
        while await attacker.turn(peer):
            stream = peer.begin(attacker.target.unary.path, attacker.target.metadata)
            peer.send(frame(Kind.DATA, stream.number, prefix))


async def unread_unary(attacker: Attacker) -> None:
    """Unary calls whose reply finds a receive window of 0."""
    call = attacker.target.unary
    async for peer in attacker.connections(window=0):
        while await attacker.turn(peer):
            peer.call(call.path, attacker.target.metadata, call.body)


async def unread_streams(attacker: Attacker) -> None:
    """Streamed replies that find a receive window of 0."""
    call = attacker.target.streamed
    async for peer in attacker.connections(window=0):
        while await attacker.turn(peer):
            peer.call(call.path, attacker.target.metadata, call.body)


async def large_headers(attacker: Attacker) -> None:
    """Calls with 12 kB in one header."""
    metadata = (("x-large", "x" * 12_000),)
    async for peer in attacker.connections():
        while await attacker.turn(peer):
            peer.begin(attacker.target.unary.path, metadata)


async def many_headers(attacker: Attacker) -> None:
    """Calls with 500 headers."""
    metadata = [(f"x-{number}", "x") for number in range(500)]
    async for peer in attacker.connections():
        while await attacker.turn(peer):
            peer.begin(attacker.target.unary.path, metadata)


async def hpack_bombs(attacker: Attacker) -> None:
    """Calls whose headers name one indexed header of 3 kB 4,000 times, one byte each."""
    indexed = b"\x40" + literal("x-bomb", "x" * 3000)[1:]
    newest = b"\xbe"  # the first entry of the dynamic table
    async for peer in attacker.connections():
        while await attacker.turn(peer):
            peer.begin(attacker.target.unary.path, more=indexed + newest * 4000)


async def continuation_flood(attacker: Attacker) -> None:
    """CONTINUATION frames of 1 kB that never end their headers."""
    piece = literal("x-more", "x" * 1000)
    async for peer in attacker.connections():
        if await attacker.turn(peer):
            peer.send(frame(Kind.HEADERS, 1, request(attacker.target.unary.path)))
        while await attacker.turn(peer):
            peer.send(frame(Kind.CONTINUATION, 1, piece))


async def endless_trailers(attacker: Attacker) -> None:
    """HEADERS after the message, again and again, none of which ends the stream."""
    call = attacker.target.streamed
    async for peer in attacker.connections():
        while await attacker.turn(peer):
            stream = peer.begin(call.path, attacker.target.metadata)
            peer.send(frame(Kind.DATA, stream.number, message(call.body)))
            while stream.ended_at is None and await attacker.turn(peer):
                peer.send(frame(Kind.HEADERS, stream.number, literal("x-trailer", "x"), END_HEADERS))


async def empty_data(attacker: Attacker) -> None:
    """DATA frames with nothing in them."""
    async for peer in attacker.connections():
        while await attacker.turn(peer):
            stream = peer.begin(attacker.target.unary.path, attacker.target.metadata)
            while stream.ended_at is None and await attacker.turn(peer):
                peer.send(frame(Kind.DATA, stream.number))


async def rapid_reset(attacker: Attacker) -> None:
    """Streams that are reset as soon as they are begun, without a key."""
    async for peer in attacker.connections():
        while await attacker.turn(peer):
            peer.reset(peer.begin(attacker.target.streamed.path))


async def rapid_reset_of_calls(attacker: Attacker) -> None:
    """Whole calls with a key that are reset as soon as they are sent."""
    call = attacker.target.streamed
    async for peer in attacker.connections():
        while await attacker.turn(peer):
            peer.reset(peer.call(call.path, attacker.target.metadata, call.body))


async def ping_flood(attacker: Attacker) -> None:
    """PING frames."""
    async for peer in attacker.connections():
        while await attacker.turn(peer):
            peer.send(frame(Kind.PING, body=bytes(8)))


async def unread_pings(attacker: Attacker) -> None:
    """PING frames whose acknowledgements are never read."""
    async for peer in attacker.connections(reads=False):
        while await attacker.turn(peer):
            peer.send(frame(Kind.PING, body=bytes(8)))


async def settings_flood(attacker: Attacker) -> None:
    """SETTINGS frames."""
    async for peer in attacker.connections():
        while await attacker.turn(peer):
            peer.send(settings(()))


async def unread_settings(attacker: Attacker) -> None:
    """SETTINGS frames whose acknowledgements are never read."""
    async for peer in attacker.connections(reads=False):
        while await attacker.turn(peer):
            peer.send(settings(()))


async def priority_flood(attacker: Attacker) -> None:
    """PRIORITY frames, each for another stream."""
    async for peer in attacker.connections():
        number = 1
        while await attacker.turn(peer):
            peer.send(frame(Kind.PRIORITY, number, bytes(5)))
            number = (number + 2) & LARGEST_WINDOW


async def window_overflow(attacker: Attacker) -> None:
    """WINDOW_UPDATE frames that make a window larger than there may be."""
    async for peer in attacker.connections():
        stream = peer.begin(attacker.target.unary.path)
        for number in cycle((stream.number, 0)):
            if not await attacker.turn(peer):
                break
            peer.give_window(number, LARGEST_WINDOW)


async def overrun_windows(attacker: Attacker) -> None:
    """DATA frames of 16 kB, whatever the server's windows are."""
    prefix = b"\x00" + PROMISED_BYTES.to_bytes(4)
    async for peer in attacker.connections():
        stream = peer.begin(attacker.target.unary.path, attacker.target.metadata)
        peer.send(frame(Kind.DATA, stream.number, prefix))
        while await attacker.turn(peer):
            peer.send(frame(Kind.DATA, stream.number, bytes(16_384)))


async def broken_frames(attacker: Attacker) -> None:
    """Frames that no server can take: on a wrong stream, of a wrong length, of an unknown kind."""
    broken = cycle(
        (
            frame(Kind.DATA, 0, b"x"),
            frame(Kind.HEADERS, 2, request("/x/y"), END_HEADERS),
            frame(Kind.HEADERS, 0, request("/x/y"), END_HEADERS),
            frame(Kind.HEADERS, 1, b"\xff" * 100, END_HEADERS),
            frame(Kind.HEADERS, 1, request("x" * 100), END_HEADERS | END_STREAM),
            frame(Kind.RST_STREAM, 9, bytes(4)),
            frame(Kind.WINDOW_UPDATE, 0, bytes(4)),
            frame(Kind.PING, body=bytes(7)),
            frame(Kind.SETTINGS, body=bytes(5)),
            frame(Kind.CONTINUATION, 1, b"x"),
            b"\x00\x00\x08\xee\x00\x00\x00\x00\x00" + bytes(8),
            b"\xff\xff\xff" + bytes(6),
        )
    )
    async for peer in attacker.connections():
        while await attacker.turn(peer):
            peer.send(next(broken))


async def slow_bytes(attacker: Attacker) -> None:
    """Preface, settings, headers and message, one byte at a time, on many connections."""
    call = attacker.target.unary
    bytes_of_call = (
        PREFACE
        + settings(())
        + frame(Kind.HEADERS, 1, request(call.path, attacker.target.metadata), END_HEADERS)
        + frame(Kind.DATA, 1, message(call.body), END_STREAM)
    )
    length = len(bytes_of_call)
    slow: list[tuple[RawPeer, int]] = []
    for number in range(SLOW_CONNECTIONS):
        peer, at = await attacker.connect(greets=False), length * number // SLOW_CONNECTIONS
        peer.send(bytes_of_call[:at])
        slow.append((peer, at))
    while True:
        for number, (peer, at) in enumerate(slow):
            if not await attacker.turn():
                return
            if at == length or not peer.is_open:
                peer, at = await attacker.connect(greets=False), 0
            peer.send(bytes_of_call[at : at + 1])
            slow[number] = (peer, at + 1)


async def silent_connections(attacker: Attacker) -> None:
    """Connections that say nothing, and as many that say nothing after their preface."""
    greets = cycle((False, True))
    while await attacker.turn():
        try:
            await attacker.connect(greets=next(greets))
        except OSError:
            continue


async def garbage(attacker: Attacker) -> None:
    """Connections that begin with random bytes, or with TLS, and stay."""
    kinds = cycle((CLIENT_HELLO, os.urandom(4096), b"GET / HTTP/1.1\r\nHost: mesh\r\n\r\n"))
    while await attacker.turn():
        try:
            peer = await attacker.connect(greets=False)
        except OSError:
            continue
        peer.send(next(kinds))
