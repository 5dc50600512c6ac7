"""The metadata that carries a deadline and its owner from hop to hop.

`grpc-timeout` alone cannot: the C core rounds it up and may reuse one that is 3% longer. So every call carries both it, which any
conformant server obeys, and the exact rest in microseconds beside it. The receiver takes the tighter of the two.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from deadlinemesh.deadline import DeadlineContext

__all__ = ["IDENTITY", "MESH_TOKEN", "REMAINING_US", "TRACEPARENT", "Incoming", "decode", "encode"]

REMAINING_US = "deadline-remaining-us"
"""What remains of the deadline at the moment of sending: whole microseconds, decimal, at most 16 digits."""
IDENTITY = "mesh-identity"
"""Whose call it is: `tenant=ID;tier=NAME;run=ID`. One header, the same for a whole run, because each costs every hop."""
MESH_TOKEN = "mesh-token"
"""The shared secret by which peers of the mesh know one another."""
TRACEPARENT = "traceparent"
"""W3C Trace Context, version 00."""

Metadata = tuple[tuple[str, str], ...]

_IDENTITY = re.compile(r"tenant=([^;]*);tier=([^;]*);run=([^;]*)")
_TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class Incoming(NamedTuple):
    """What a call's metadata says, not yet believed. Empty strings stand for what was not sent."""

    remaining: float | None
    """Seconds left by the tighter of the two deadlines; None where the caller sent neither."""
    malformed_remaining: str | None
    """A `deadline-remaining-us` that is not what it should be, and was ignored."""
    tenant_id: str
    tier: str
    run_id: str
    trace_id: str
    mesh_token: str


def encode(context: DeadlineContext, mesh_token: str) -> Metadata:
    """The metadata for a call made now under `context`. The rest is rounded down, so that it never grows on the way."""
    return (
        (REMAINING_US, str(int(context.remaining * 1_000_000))),
        (IDENTITY, f"tenant={context.tenant_id};tier={context.tier};run={context.run_id}"),
        (MESH_TOKEN, mesh_token),
    )


@lru_cache(4096)
def traceparent(trace_id: str) -> tuple[str, str]:
    """A trace context for calls that no span describes: the trace goes on, unsampled."""
    return TRACEPARENT, f"00-{trace_id}-{random.getrandbits(64) | 1:016x}-00"


def decode(metadata: Mapping[str, str | bytes], native_remaining: float | None) -> Incoming:
    """Read a call's metadata. `native_remaining` is what `grpc-timeout` left, in seconds; None without one."""
    remaining, malformed = native_remaining, None
    exact = metadata.get(REMAINING_US)
    if exact is not None:
        if isinstance(exact, str) and exact.isascii() and exact.isdigit() and len(exact) <= 16:
            seconds = int(exact) / 1_000_000
            remaining = seconds if remaining is None else min(remaining, seconds)
        else:
            malformed = repr(exact)
    tenant_id, tier, run_id = _identity(_text(metadata, IDENTITY))
    return Incoming(
        remaining=remaining,
        malformed_remaining=malformed,
        tenant_id=tenant_id,
        tier=tier,
        run_id=run_id,
        trace_id=_trace_id(_text(metadata, TRACEPARENT)),
        mesh_token=_text(metadata, MESH_TOKEN),
    )


# A run's calls all carry the same identity and trace: reading them once is enough.
@lru_cache(4096)
def _identity(value: str) -> tuple[str, str, str]:
    match = _IDENTITY.fullmatch(value)
    return (match[1], match[2], match[3]) if match else ("", "", "")


@lru_cache(4096)
def _trace_id(value: str) -> str:
    match = _TRACEPARENT.fullmatch(value)
    return match[1] if match else ""


def new_trace_id() -> str:
    """A random W3C trace id."""
    return f"{random.getrandbits(128) | 1:032x}"


def _text(metadata: Mapping[str, str | bytes], key: str) -> str:
    value = metadata.get(key, "")
    return value if isinstance(value, str) else ""
