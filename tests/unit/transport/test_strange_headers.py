"""The headers of strangers' calls are freed long before a collection of garbage is due."""

from __future__ import annotations

import weakref
from typing import Any

import grpc
import pytest

from deadlinemesh.deadline import SYSTEM_CLOCK
from deadlinemesh.transport import DeadlineInterceptor, MeshGate

BYTES = 6_000_000
"""As Python holds them: more than are left to lie."""


class Details:
    """What grpc.aio tells of a call. As there, a cycle keeps it."""

    def __init__(self, headers: int, letters: int) -> None:
        self.method = "/test.v1.Service/Ask"
        self.invocation_metadata = tuple(("x", "x" * letters) for _ in range(headers))
        self.itself = self


async def echo(request: bytes, context: Any) -> bytes:
    return request


@pytest.mark.parametrize(
    ("calls", "headers"),
    [(100, 1), (60, 100), (2, 4000), (2, 30_000)],
    ids=["a long one", "a hundred", "HPACK bombs of long ones", "HPACK bombs of short ones"],
)
async def test_headers_of_strangers_are_freed(calls: int, headers: int) -> None:
    interceptor = DeadlineInterceptor("hop", MeshGate("hop", "secret", SYSTEM_CLOCK))
    refused: list[weakref.ref[Details]] = []
    freed: list[bool] = []
    interceptor.on_freed = lambda: freed.append(refused[0]() is None)
    handler: Any = grpc.unary_unary_rpc_method_handler(echo)

    async def known(details: Any) -> Any:
        return handler

    for _ in range(calls + 1):
        details = Details(headers, max(1, BYTES // calls // headers - 170))
        refused.append(weakref.ref(details))
        await interceptor.intercept_service(known, details)  # type: ignore[arg-type]
    assert freed
    assert all(freed)
