"""Calls at the gates of the edge, of the orchestrators behind it, and of inner hops: lines of `name: value`.

`:native: SECONDS` is the call's `grpc-timeout`, and `:method: PATH` its method.
"""

from __future__ import annotations

import math
from contextlib import suppress

from tests.fuzz.reading import headers

from deadlinemesh.deadline import DeadlineContext, VirtualClock
from deadlinemesh.errors import MeshError
from deadlinemesh.identity.grants import encode_grant
from deadlinemesh.identity.keys import hash_key
from deadlinemesh.identity.peers import IDENTITY
from deadlinemesh.orchestrator.edge import EdgeGate
from deadlinemesh.orchestrator.granted import GrantedGate
from deadlinemesh.policy import Policy, parse
from deadlinemesh.transport import Admitted, Arrival, Gate, MeshGate, wire

TOKEN = "secret"
KEYS = {"key-a": "acme", "key-b": "bolt"}
NOW_S = 1000.0


def _policy() -> Policy:
    tenants = "".join(
        f"  {tenant}: {{tier: {tier}, api_keys: ['{hash_key(key)}'], dedicated: {dedicated}}}\n"
        for (key, tenant), tier, dedicated in zip(KEYS.items(), ("free", "pro"), ("false", "true"), strict=True)
    )
    return parse(
        "tiers:\n  free: {run_budget: 30s, iterations: 2, tool_retries: 0}\n"
        "  pro: {run_budget: 120s, iterations: 5, tool_retries: 1}\n"
        f"tenants:\n{tenants}models:\n  demo: {{provider: scripted}}\n",
        "policy",
    )


POLICY = _policy()


def target(data: bytes) -> None:
    pairs = headers(data)
    said = {name: value for name, value in pairs if isinstance(value, str)}
    native: float | None = None
    with suppress(ValueError):
        native = float(said.get(":native", ""))
    if native is not None and not 0 <= native < math.inf:  # gRPC has no such
        native = None
    arrival = Arrival(said.get(":method", "/deadlinemesh.v1.OrchestratorService/Run"), pairs, NOW_S, native)
    _check_edge(arrival)
    _check_inner(arrival)
    _check_granted(arrival)


def _asked(gate: Gate, arrival: Arrival) -> Admitted | None:
    try:
        return gate(arrival)
    except MeshError as refused:
        assert str(refused)
        return None


def _check_edge(arrival: Arrival) -> None:
    admitted = _asked(EdgeGate(POLICY, VirtualClock(NOW_S)), arrival)
    if admitted is None:
        return
    context, grant = admitted.context, admitted.grant
    assert grant is not None
    key = arrival.header("authorization").split(" ", 1)[1].strip()
    assert context.tenant_id == KEYS[key]
    budget = POLICY.tiers[POLICY.tenants[KEYS[key]].tier].run_budget
    asked = budget if arrival.native_remaining is None else min(budget, arrival.native_remaining)
    assert context.absolute_deadline == NOW_S + grant.granted
    assert grant.granted <= asked
    assert grant.due <= grant.granted
    assert len(context.trace_id) == 32
    # What it grants is believed behind it, and is no more there.
    name, value = encode_grant(grant)
    forwarded = Arrival("/a.B/C", [*wire.encode(context, grant.granted, TOKEN), (name, value)], NOW_S, None)
    behind = _asked(_behind(KEYS[key]), forwarded)
    if grant.granted > 0:
        assert behind is not None
        assert behind.context.absolute_deadline <= context.absolute_deadline
        assert behind.context.tenant_id == context.tenant_id


def _check_inner(arrival: Arrival) -> None:
    admitted = _asked(MeshGate("tool-runner", TOKEN, VirtualClock(NOW_S)), arrival)
    if admitted is not None:
        _check_believed(arrival, admitted.context)


def _check_granted(arrival: Arrival) -> None:
    for tenant in KEYS.values():
        admitted = _asked(_behind(tenant), arrival)
        if admitted is not None:
            context, grant = admitted.context, admitted.grant
            _check_believed(arrival, context)
            assert grant is not None
            assert grant.due <= grant.granted
            assert context.absolute_deadline <= NOW_S + grant.granted
            assert context.tenant_id == tenant == grant.tenant.tenant_id


def _behind(tenant: str) -> GrantedGate:
    return GrantedGate(POLICY, POLICY.pool_of(tenant), TOKEN, VirtualClock(NOW_S))


def _check_believed(arrival: Arrival, context: DeadlineContext) -> None:
    *_, identity = (value for name, value in arrival.metadata if name == IDENTITY)
    assert isinstance(identity, str)
    assert identity.startswith(f"token={TOKEN};")
    assert arrival.remaining is not None
    assert context.absolute_deadline <= NOW_S + arrival.remaining
    assert arrival.native_remaining is None or arrival.remaining <= arrival.native_remaining
