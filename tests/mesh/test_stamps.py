"""A channel's own stamp wins over its caller's metadata, and a slow upload spends the call's time."""

from __future__ import annotations

from typing import Any

import grpc
from tests.support.virtual import in_virtual_time, with_seconds

from deadlinemesh.deadline import current, entered
from deadlinemesh.identity.peers import IDENTITY
from deadlinemesh.testing import virtual_time
from deadlinemesh.testing.memory import MemoryChannel, MemoryServer
from deadlinemesh.transport import Admitted, Arrival, DeadlineInterceptor, MeshChannel, MeshGate

TOKEN = "secret"


@in_virtual_time
async def test_identity_in_a_callers_metadata_is_not_believed() -> None:
    arrivals: list[Arrival] = []
    gate = MeshGate("hop", TOKEN, virtual_time.clock())

    def admit(arrival: Arrival) -> Admitted:
        arrivals.append(arrival)
        return gate(arrival)

    async def tenant(request: bytes, context: Any) -> bytes:
        return current().tenant_id.encode()

    server = MemoryServer(DeadlineInterceptor("hop", admit, clock=virtual_time.clock()))
    methods: dict[str, Any] = {"Tenant": grpc.unary_unary_rpc_method_handler(tenant)}
    server.add_registered_method_handlers("example.Who", methods)
    call = MeshChannel(MemoryChannel(server), TOKEN).unary_unary("/example.Who/Tenant")
    forged = (IDENTITY, f"token={TOKEN};tenant=evil;tier=free;run=run-9;trace=")
    with entered(with_seconds(10.0, tenant_id="acme")):
        assert await call(b"", metadata=(forged, ("x-note", "kept"))) == b"acme"
    assert arrivals[0].header("x-note") == "kept"
