"""The metadata that carries a deadline and its owner from hop to hop.

`grpc-timeout` alone is not exact: the C core rounds it up, and may reuse one that is 3% longer. So
each call carries it, for any conformant server, and the exact remaining time in microseconds beside
it. The receiver takes the tighter of the two.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from deadlinemesh.deadline import DeadlineContext
from deadlinemesh.errors import shown
from deadlinemesh.identity.peers import IDENTITY, identity_value

__all__ = ["IDENTITY", "REMAINING_US", "TRACEPARENT", "decode", "encode", "exact"]

REMAINING_US = "deadline-remaining-us"
"""Header: the time that remains at the moment of sending. Whole microseconds, decimal, at most 16
digits.
"""
TRACEPARENT = "traceparent"
"""Header: W3C Trace Context, version 00. Inside the mesh it travels beside the identity if spans
are recorded.
"""

_MALFORMED = 100
"""Characters of a malformed value that are reported. It may fill all of the 8 KiB that headers may
have.
"""

LEAST_TRANSIT = 0.00015
"""Seconds that a call takes at least from its sending to its reading. Six hops of it stay below the
millisecond by which a deadline may become earlier on its way. Measured: 0.3 to 0.7 ms on one
machine.
"""

Metadata = tuple[tuple[str, str], ...]
Pairs = Sequence[tuple[str, str | bytes]]
"""A call's metadata as it arrives."""
Said = tuple[float | None, str, str | None]
"""Result of `decode`: seconds left, identity, malformed value."""

_TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def exact(remaining: float) -> str:
    """`remaining` seconds as the value of REMAINING_US. They are reduced by LEAST_TRANSIT and
    rounded down, so they never grow on the way.
    """
    return f"{int((remaining - LEAST_TRANSIT) * 1_000_000)}" if remaining > LEAST_TRANSIT else "0"


def encode(context: DeadlineContext, remaining: float, mesh_token: str) -> Metadata:
    """The metadata for a call made under `context` when `remaining` seconds are left."""
    return (
        (REMAINING_US, exact(remaining)),
        (IDENTITY, identity_value(context, mesh_token)),
    )


def decode(metadata: Pairs) -> Said:
    """Read a call's metadata without believing it yet.

    Returns three values: the exact remaining seconds, None if the caller sent none; the identity
    header, empty if none was sent; and a malformed `deadline-remaining-us`, which is ignored, else
    None.
    """
    rest, identity, malformed = None, "", None
    for pair in metadata:  # unpacked only if needed: grpc.aio's pairs are slow at it
        key = pair[0]
        if key == REMAINING_US:
            value = pair[1]
            if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 16:
                seconds = int(value) / 1_000_000
                rest = seconds if rest is None else min(rest, seconds)
            else:
                malformed = shown(value, _MALFORMED)
        elif key == IDENTITY:
            value = pair[1]
            identity = value if isinstance(value, str) else ""
    return rest, identity, malformed


def trace_id_of(traceparent: str) -> str:
    """The trace id of a W3C trace context; empty if it is not a valid one."""
    match = _TRACEPARENT.fullmatch(traceparent)
    return match[1] if match else ""


def new_trace_id() -> str:
    """A random W3C trace id."""
    return f"{random.getrandbits(128) | 1:032x}"
