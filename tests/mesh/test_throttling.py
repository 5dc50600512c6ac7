"""Over a real server: a method that sheds most of a tenant's calls is soon not even asked, and nobody else notices."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
import pytest
from tests.support.rpc import ARITIES, STREAMING, begin, finish, handler, methods, serving, with_seconds, within_bounds

from deadlinemesh.deadline import current, entered
from deadlinemesh.errors import MeshError, Shed, TooLarge
from deadlinemesh.telemetry import CallStarted
from deadlinemesh.transport import error_from

CALLS = 200


def shedding(arity: str) -> Mapping[str, grpc.RpcMethodHandler[Any, Any]]:
    """A method that sheds the calls of one tenant, before it says anything."""

    async def refuse(request: Any, context: Any) -> bytes:
        if current().tenant_id == "crowd":
            raise Shed("no slot in time", retry_after=0.5)
        return b"ok"

    async def refuse_stream(request: Any, context: Any) -> AsyncIterator[bytes]:
        yield await refuse(request, context)

    return {arity: handler(arity, refuse_stream if arity in STREAMING else refuse)}


async def too_large(request: bytes, context: object) -> bytes:
    raise TooLarge("more than 4 bytes")


@pytest.mark.parametrize("arity", ARITIES)
async def test_a_method_that_sheds_is_soon_not_even_asked(arity: str) -> None:
    async with serving(shedding(arity)) as hop:
        here: list[Shed] = []
        there: list[MeshError] = []
        with entered(with_seconds(100.0, tenant_id="crowd")):
            for _ in range(CALLS):
                try:
                    await within_bounds(finish(begin(hop.mesh, arity, requests=()), arity))
                except Shed as shed:
                    here.append(shed)
                except grpc.aio.AioRpcError as error:
                    there.append(error_from(error, "hop-a"))
        assert len(here) + len(there) == CALLS
        assert all(isinstance(one, Shed) and one.retry_after for one in (*here, *there))
        assert len(hop.facts.seen(CallStarted)) == len(there) < CALLS / 2
        with entered(with_seconds(100.0, tenant_id="acme")):
            for _ in range(20):
                await within_bounds(finish(begin(hop.mesh, arity), arity))


async def test_what_is_refused_for_itself_is_asked_again_and_again() -> None:
    async with serving(methods(too_large)) as hop:
        with entered(with_seconds(100.0)):
            for _ in range(50):
                with pytest.raises(grpc.aio.AioRpcError):
                    await within_bounds(finish(begin(hop.mesh, "unary_unary"), "unary_unary"))
        assert len(hop.facts.seen(CallStarted)) == 50
