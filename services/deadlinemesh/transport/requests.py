"""The request of a call: read, and refused where it is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from deadlinemesh.errors import ClientCancelled, InvalidRequest, Violation

__all__ = ["late_request", "parser_of", "received"]

Parser = Callable[[bytes], Any]


def parser_of(method: str, deserialize: Parser | None) -> Parser | None:
    """`deserialize`, raising InvalidRequest for bytes that are no message of `method`."""
    if deserialize is None:
        return None

    def parse(data: bytes) -> Any:
        try:
            return deserialize(data)
        except Exception as error:
            what = f"its {len(data)} bytes are no message of {method}: {type(error).__name__}"
            raise InvalidRequest([Violation("request", what)]) from None

    return parse


async def received(context: Any, method: str) -> Any:
    """The one request of a call. Raises InvalidRequest where it ends without, and ClientCancelled where the peer has left."""
    request = await context.read()
    if request is not grpc.aio.EOF:
        return request
    if context.done():
        raise ClientCancelled("the caller left before it had sent its request")
    raise InvalidRequest([Violation("request", f"is missing: {method} takes one message")])


def late_request(method: str, seconds: float) -> InvalidRequest:
    """The error for a request that has not arrived in `seconds`."""
    return InvalidRequest(
        [Violation("request", f"{method} waits {seconds:g} s for its message, and it has not arrived")]
    )
