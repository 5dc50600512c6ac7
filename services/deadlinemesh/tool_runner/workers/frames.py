"""How the two ends of a worker's socket talk: a small JSON head, and a body that is passed on as it is.

A tool's answer is the body, so the event loop never parses one, however large.
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
"""Of a head. It holds names, numbers and the end of a traceback."""

_PIECE = 256 * 1024
_SIZES = struct.Struct("!II")


class Broken(Exception):
    """The other end does not keep to the protocol."""


def packed(head: Mapping[str, Any], body: bytes = b"") -> bytes:
    """A frame as bytes."""
    # Not in ASCII, in which an emoji takes twelve bytes. What stands for half a character is nobody's to read.
    encoded = json.dumps(head, ensure_ascii=False).encode(errors="replace")
    return b"".join((_SIZES.pack(len(encoded), len(body)), encoded, body))


async def receive(sock: socket.socket, most_bytes: int) -> tuple[dict[str, Any], bytes] | None:
    """The next frame from a non-blocking socket; None when the other end has closed.

    Raises Broken for what is no frame, or has a body of more than `most_bytes`.
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
    """The next frame from a blocking socket; None when the other end has closed."""

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
