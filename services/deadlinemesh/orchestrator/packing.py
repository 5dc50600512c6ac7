"""Finished runs as compressed bytes: a tenth of the memory that they take as objects."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Sequence

from deadlinemesh.orchestrator.events import Timed
from deadlinemesh.vocabulary import Message

__all__ = ["pack", "unpack"]

_LEVEL = 1
"""Of zlib's: fast. A higher one saves a few percent."""


def pack(events: Sequence[Timed], history: Sequence[Message]) -> bytes:
    """Events and conversation as bytes, for this process alone. Takes about 60 µs for a short run, 1 ms for each 64 KiB."""
    return zlib.compress(pickle.dumps((tuple(events), tuple(history)), pickle.HIGHEST_PROTOCOL), _LEVEL)


def unpack(packed: bytes) -> tuple[tuple[Timed, ...], tuple[Message, ...]]:
    """The events and the conversation that were packed."""
    events, history = pickle.loads(zlib.decompress(packed))  # this process has written it
    return events, history
