"""Refuses messages with very many parts before they are parsed: two bytes on the wire may become a
hundred in memory.

Reads the wire format of protocol buffers, tags and lengths only. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from deadlinemesh.errors import InvalidRequest, Violation

__all__ = ["Crowded", "Parts", "is_crowded", "unless_crowded"]

Parts = Mapping[int, "Parts | None"]
"""Maps the number of each submessage field to the `Parts` of that submessage. None for a submessage
that is not to be counted.
"""

LOOKED_AT = 64 * 1024
"""Bytes. A message of up to this size is not checked: it has not enough parts to matter."""

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


class Crowded(InvalidRequest):
    """A request of `size` bytes has too many parts and was not parsed."""

    def __init__(self, fields: str, most: int, size: int) -> None:
        super().__init__([Violation(fields, f"the message has more than {most} parts; send fewer")])
        self.size = size


def unless_crowded(parse: Callable[[bytes], Any], fields: str, parts: Parts, most: int) -> Callable[[bytes], Any]:
    """Return a deserializer that parses messages with at most `most` parts.

    For any other message it returns a `Crowded` error, for the handler to raise. The error names
    `fields`, the fields that may have many entries.
    """

    def deserialize(raw: bytes) -> Any:
        if len(raw) > LOOKED_AT and is_crowded(raw, parts, most):
            return Crowded(fields, most, len(raw))
        return parse(raw)

    return deserialize


def is_crowded(raw: bytes, parts: Parts, most: int) -> bool:
    """True if a message has more than `most` fields, including the fields of its `parts`. Garbled
    messages are left for the parser to refuse.
    """
    try:
        return _left(raw, 0, len(raw), parts, most) < 0
    except IndexError:
        return False


def _left(raw: bytes, at: int, end: int, parts: Parts, left: int) -> int:
    """Return `left` less the number of fields from `at` to `end`; negative as soon as there are too
    many.
    """
    while at < end and left >= 0:
        left -= 1
        tag, at = _varint(raw, at)
        kind = tag & 7
        if kind == _LENGTH:
            length, at = _varint(raw, at)
            if (inner := parts.get(tag >> 3)) is not None:
                left = _left(raw, at, min(at + length, end), inner, left)
            at += length
        elif kind == _VARINT:
            _, at = _varint(raw, at)
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        # The start tag and the end tag of a group have no data. The group's fields count like any
        # others.
    return left


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    byte = raw[at]
    if byte < 0x80:
        return byte, at + 1
    value, shift = byte & 0x7F, 7
    while byte >= 0x80 and shift < 70:
        at += 1
        byte = raw[at]
        value |= (byte & 0x7F) << shift
        shift += 7
    return value, at + 1
