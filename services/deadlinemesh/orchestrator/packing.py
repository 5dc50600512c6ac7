"""Finished runs as compressed bytes. They take a tenth of the memory of the objects."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Sequence

from deadlinemesh.orchestrator.events import Timed
from deadlinemesh.vocabulary import Message

__all__ = ["pack", "unpack"]

_LEVEL = 1
"""Compression level of zlib: fast. A higher level saves a few percent."""


def pack(events: Sequence[Timed], history: Sequence[Message]) -> bytes:
    """Pack events and conversation into bytes, for this process only.

    Takes about 60 µs for a short run, and 1 ms for each 64 KiB.
    """
    return zlib.compress(pickle.dumps((tuple(events), tuple(history)), pickle.HIGHEST_PROTOCOL), _LEVEL)


def unpack(packed: bytes) -> tuple[tuple[Timed, ...], tuple[Message, ...]]:
    """Unpack the events and the conversation of `pack`."""
    events, history = pickle.loads(zlib.decompress(packed))  # trusted: this process wrote it
    return events, history
