"""An HTTP/2 client that keeps the protocol only as far as it is told to.

It writes whatever frames it is given, valid or not, acknowledges settings and pings as they come, and keeps nothing of
what it reads: per stream it knows how many bytes came, the gRPC status, and whether it was reset.
"""

from __future__ import annotations

import asyncio
import struct
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from enum import IntEnum

__all__ = [
    "ACK",
    "END_HEADERS",
    "END_STREAM",
    "PREFACE",
    "Kind",
    "RawPeer",
    "Stream",
    "frame",
    "literal",
    "message",
    "request",
]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
ACK = END_STREAM = 0x1
END_HEADERS = 0x4

LARGEST_WINDOW = 2**31 - 1
FIRST_WINDOW = 65_535
"""Bytes that a connection's window has at its beginning, whatever the settings say."""

_FROM = ("127.0.0.2", 0) if sys.platform == "linux" else None
"""Whence it connects: to a service that bounds what one host may do, it is another host than those who call from 127.0.0.1."""
_MARK = b"so far ?"
"""What the ping of `taken` carries."""

Metadata = Iterable[tuple[str, str]]


class Kind(IntEnum):
    """The kinds of frames (RFC 9113, section 6)."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Setting(IntEnum):
    """The settings that the peer sends (RFC 9113, section 6.5.2)."""

    HEADER_TABLE_SIZE = 1
    INITIAL_WINDOW_SIZE = 4


def frame(kind: Kind, stream: int = 0, body: bytes = b"", flags: int = 0) -> bytes:
    """One frame."""
    return len(body).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + body


def settings(pairs: Iterable[tuple[int, int]]) -> bytes:
    """A SETTINGS frame."""
    return frame(Kind.SETTINGS, body=b"".join(struct.pack("!HI", *pair) for pair in pairs))


def literal(name: str, value: str) -> bytes:
    """A header as an HPACK literal: neither indexed nor Huffman coded (RFC 7541, section 6.2.2)."""
    return b"\x00" + _text(name.encode()) + _text(value.encode())


def request(path: str, metadata: Metadata = ()) -> bytes:
    """The header block of a gRPC call."""
    fields = (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "mesh"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        *metadata,
    )
    return b"".join(literal(*field) for field in fields)


def message(body: bytes) -> bytes:
    """A gRPC message as it stands in DATA frames."""
    return b"\x00" + struct.pack("!I", len(body)) + body


class Stream:
    """What the peer knows of one of its streams."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.received = 0
        """Bytes of DATA so far."""
        self.status: str | None = None
        """The gRPC status, in digits; None without one."""
        self.reset: int | None = None
        """The error code of the server's RST_STREAM; None without one."""
        self.ended_at: float | None = None
        """The instant at which the server ended it, or its connection."""
        self._ended = asyncio.Event()

    def __repr__(self) -> str:
        how = "open" if self.ended_at is None else f"status {self.status}, reset {self.reset}"
        return f"<Stream {self.number}: {self.received} bytes, {how}>"

    def end(self) -> None:
        """Note that it has ended now."""
        if self.ended_at is None:
            self.ended_at = time.monotonic()
            self._ended.set()

    async def ended(self) -> Stream:
        """Wait for its end; returns the stream itself."""
        await self._ended.wait()
        return self


class RawPeer:
    """One connection. `window` is what each stream may receive."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, window: int) -> None:
        self.greets = False
        """Whether it has sent its preface by itself."""
        self.streams: dict[int, Stream] = {}
        """Those that are open, by number."""
        self.goaway: int | None = None
        """The error code of the last GOAWAY; None without one."""
        self.received = 0
        """Frames so far."""
        self.closed = asyncio.Event()
        """Set once the server has closed the connection."""
        self._reader = reader
        self._writer = writer
        self._window = window
        self._next = 1
        self._taken = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None

    @property
    def reads(self) -> bool:
        """Whether it reads what comes, and so learns of its connection's end."""
        return self._reading is not None

    @classmethod
    async def connect(
        cls, port: int, *, window: int = LARGEST_WINDOW, reads: bool = True, greets: bool = True
    ) -> RawPeer:
        """Connect to 127.0.0.1:`port`.

        Unless it `reads`, whatever comes stays in the system's buffers, pings and settings that want an answer included; unless it
        `greets`, the preface and the first settings are left to the caller.
        """
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=_FROM)
        peer = cls(reader, writer, window)
        if greets:
            peer.greets = True
            peer.send(PREFACE)
            # Without a dynamic table the server's headers can be read one by one.
            peer.send(settings(((Setting.HEADER_TABLE_SIZE, 0), (Setting.INITIAL_WINDOW_SIZE, window))))
            if window > FIRST_WINDOW:
                peer.give_window(0, window - FIRST_WINDOW)
        if reads:
            peer._reading = asyncio.ensure_future(peer._read())
        return peer

    @property
    def is_open(self) -> bool:
        """Whether the connection stands, as far as is known."""
        return not self.closed.is_set()

    def send(self, data: bytes) -> None:
        """Write bytes as they are."""
        if self.is_open:
            self._writer.write(data)

    async def flush(self) -> None:
        """Wait until the system has taken most of what was sent, or the connection is closed."""
        try:
            await self._writer.drain()
        except ConnectionError:
            self._close()

    def begin(self, path: str, metadata: Metadata = (), more: bytes = b"") -> Stream:
        """Begin a call with its headers, and leave it open. `more` is put at the end of their block as it is."""
        stream = self.streams[self._next] = Stream(self._next)
        self._next += 2
        self.send(frame(Kind.HEADERS, stream.number, request(path, metadata) + more, END_HEADERS))
        if not self.is_open:
            self._end(stream.number)
        return stream

    def call(self, path: str, metadata: Metadata, body: bytes) -> Stream:
        """Make a whole call; its message must fit into one frame."""
        stream = self.begin(path, metadata)
        self.send(frame(Kind.DATA, stream.number, message(body), END_STREAM))
        return stream

    def reset(self, stream: Stream, code: int = 8) -> None:
        """End a stream from this side; 8 is CANCEL."""
        self.send(frame(Kind.RST_STREAM, stream.number, code.to_bytes(4)))
        self._end(stream.number)

    def give_window(self, stream: int, size: int) -> None:
        """Let so many more bytes come; stream 0 is the connection."""
        self.send(frame(Kind.WINDOW_UPDATE, stream, size.to_bytes(4)))

    async def taken(self) -> None:
        """Wait until the server has taken all that was sent, as its answer to a ping tells, or has closed the connection."""
        if self.is_open:
            self._taken.clear()
            self.send(frame(Kind.PING, body=_MARK))
            await self._taken.wait()

    async def close(self) -> None:
        """Break the connection off."""
        self._writer.transport.abort()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait({self._reading})
        self._close()

    def _close(self) -> None:
        self.closed.set()
        self._taken.set()
        for number in list(self.streams):
            self._end(number)

    def _end(self, number: int) -> None:
        if (stream := self.streams.pop(number, None)) is not None:
            stream.end()

    async def _read(self) -> None:
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                while True:
                    head = await self._reader.readexactly(9)
                    body = await self._reader.readexactly(int.from_bytes(head[:3]))
                    self.received += 1
                    self._take(head[3], head[4], int.from_bytes(head[5:]) & LARGEST_WINDOW, body)
        finally:
            self._close()

    def _take(self, kind: int, flags: int, number: int, body: bytes) -> None:
        stream = self.streams.get(number)
        match kind:
            case Kind.DATA | Kind.HEADERS:
                if kind == Kind.DATA and body and self._window:
                    self.give_window(0, len(body))
                if stream is not None and kind == Kind.DATA:
                    stream.received += len(body)
                elif stream is not None:
                    stream.status = literals(body).get("grpc-status", stream.status)
                if flags & END_STREAM:
                    self._end(number)
            case Kind.RST_STREAM:
                if stream is not None:
                    stream.reset = int.from_bytes(body)
                self._end(number)
            case Kind.SETTINGS if not flags & ACK:
                self.send(frame(Kind.SETTINGS, flags=ACK))
            case Kind.PING if not flags & ACK:
                self.send(frame(Kind.PING, body=body, flags=ACK))
            case Kind.PING if body == _MARK:
                self._taken.set()
            case Kind.GOAWAY:
                self.goaway = int.from_bytes(body[4:8])


def literals(block: bytes) -> dict[str, str]:
    """The headers of a block that are written out, as far as it can be read: indexed and Huffman coded ones are left out."""
    found: dict[str, str] = {}
    with suppress(IndexError):
        at = 0
        while at < len(block):
            first = block[at]
            if first & 0x80 or first & 0xE0 == 0x20:  # indexed, or another size of the table
                _, at = _number(block, at, 7 if first & 0x80 else 5)
                continue
            index, at = _number(block, at, 6 if first & 0x40 else 4)
            name, at = ("", at) if index else _read_text(block, at)
            value, at = _read_text(block, at)
            found[name] = value
    return found


def _text(text: bytes) -> bytes:
    length, coded = len(text), bytearray()
    if length < 127:
        coded.append(length)
    else:
        coded.append(127)
        length -= 127
        while length > 127:
            coded.append(length & 127 | 128)
            length >>= 7
        coded.append(length)
    return bytes(coded) + text


def _number(block: bytes, at: int, bits: int) -> tuple[int, int]:
    most = (1 << bits) - 1
    number, at = block[at] & most, at + 1
    if number == most:
        shift = 0
        while True:
            byte, at = block[at], at + 1
            number += (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
    return number, at


def _read_text(block: bytes, at: int) -> tuple[str, int]:
    is_huffman = block[at] & 0x80
    length, at = _number(block, at, 7)
    return "" if is_huffman else block[at : at + length].decode("latin-1"), at + length
