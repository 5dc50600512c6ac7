"""A call's metadata, decoded and encoded: lines of `name: value`."""

from __future__ import annotations

import re
from contextlib import suppress

from tests.fuzz.reading import headers, text

from deadlinemesh.deadline import DeadlineContext
from deadlinemesh.identity.peers import Identity, checked_token, identity_of
from deadlinemesh.transport import Arrival, wire

LONGEST_S = 10**10
"""Sixteen digits of microseconds."""


def target(data: bytes) -> None:
    pairs = headers(data)
    exact, identity, malformed = wire.decode(pairs)
    assert exact is None or 0 <= exact < LONGEST_S
    assert malformed is None or any(name == wire.REMAINING_US for name, _ in pairs)
    _check_identity(identity)
    arrival = Arrival("/a.B/C", pairs, 0.0, 20.0)
    assert arrival.remaining is not None
    assert arrival.remaining <= min(20.0, 20.0 if exact is None else exact)
    assert arrival.late >= 0
    for name, _ in pairs:
        assert isinstance(arrival.header(name), str)
    for line in data.split(b"\n"):
        trace_id = wire.trace_id_of(text(line))
        assert not trace_id or (re.fullmatch("[0-9a-f]{32}", trace_id) and int(trace_id, 16))
        with suppress(ValueError):
            _check_token(checked_token(text(line)))


def _check_identity(header: str) -> None:
    """An identity that was read is written as it came."""
    who = identity_of(header)
    if not header.startswith("token="):
        assert who == Identity(b"", "", "", "", "")
    if who.mesh_token and who.trace_id:
        token = who.mesh_token.decode("utf-8", "surrogatepass")
        assert wire.decode(_sent(token, who.tenant_id, who.tier, who.run_id, who.trace_id))[1] == header


def _check_token(token: str) -> None:
    _, header, _ = wire.decode(_sent(token, "acme", "free", "run_1", "1" * 32))
    assert identity_of(header) == Identity(token.encode(), "acme", "free", "run_1", "1" * 32)


def _sent(token: str, tenant: str, tier: str, run: str, trace: str) -> wire.Metadata:
    context = DeadlineContext(tenant, 1.0, tier, trace, run, 0.0)
    return wire.encode(context, 1.0, token)
