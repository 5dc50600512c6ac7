"""The message format on a worker's socket: a small JSON head, and a body of bytes.

The body is a tool's answer. The event loop passes it on and never parses it, however large.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Mapping
from typing import Any

__all__ = ["MOST_HEAD_BYTES", "Broken", "packed", "receive", "receive_blocking"]

MOST_HEAD_BYTES = 64 * 1024
"""Bytes of a head. It holds names, numbers and the end of a traceback."""

_PIECE = 256 * 1024
_SIZES = struct.Struct("!II")


class Broken(Exception):
    """The other end broke the protocol."""


def packed(head: Mapping[str, Any], body: bytes = b"") -> bytes:
    """A frame as bytes."""
    # Not in ASCII, where an emoji takes twelve bytes. Half a character is replaced, and lost.
    encoded = json.dumps(head, ensure_ascii=False).encode(errors="replace")
    return b"".join((_SIZES.pack(len(encoded), len(body)), encoded, body))


async def receive(sock: socket.socket, most_bytes: int) -> tuple[dict[str, Any], bytes] | None:
    """Return the next frame from a non-blocking socket; None if the other end has closed.

    Raises Broken if the bytes are not a frame, or the body has more than `most_bytes`.
    """
    loop = asyncio.get_running_loop()

    async def exactly(count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = await loop.sock_recv(sock, min(_PIECE, count - len(data)))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)

    try:
        head_size, body_size = _SIZES.unpack(await exactly(_SIZES.size))
        if head_size > MOST_HEAD_BYTES or body_size > most_bytes:
            raise Broken(f"a frame of {head_size} and {body_size} bytes")
        return _parsed(await exactly(head_size)), await exactly(body_size)
    except (EOFError, ConnectionError):
        return None


def receive_blocking(sock: socket.socket) -> tuple[dict[str, Any], bytes] | None:
    """Return the next frame from a blocking socket; None if the other end has closed."""

    def exactly(count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = sock.recv(min(_PIECE, count - len(data)))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)

    try:
        head_size, body_size = _SIZES.unpack(exactly(_SIZES.size))
        return _parsed(exactly(head_size)), exactly(body_size)
    except (EOFError, ConnectionError):
        return None


def _parsed(encoded: bytes) -> dict[str, Any]:
    try:
        head = json.loads(encoded)
    except (ValueError, RecursionError) as error:
        raise Broken("a head that is not JSON") from error
    if not isinstance(head, dict):
        raise Broken("a head that is no object")
    return head
