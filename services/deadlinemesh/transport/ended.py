"""Status and error of an ended call, for callbacks: they cannot await."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import grpc

from deadlinemesh.errors import MeshError
from deadlinemesh.transport.status import error_from

__all__ = ["code_of_ended", "error_of_ended"]


def code_of_ended(call: grpc.aio.Call) -> grpc.StatusCode:
    """The status code of `call`; UNKNOWN if it has none."""
    code = _at_once(call.code())
    return code if isinstance(code, grpc.StatusCode) else grpc.StatusCode.UNKNOWN


def error_of_ended(call: grpc.aio.Call, upstream: str) -> MeshError:
    """The error with which `call` to `upstream` failed."""
    initial, trailing, details = call.initial_metadata(), call.trailing_metadata(), call.details()
    error = grpc.aio.AioRpcError(code_of_ended(call), _at_once(initial), _at_once(trailing), details=_at_once(details))
    return error_from(error, upstream, in_its_words=True)  # used for a decision, never shown


def _at_once(answer: Awaitable[Any]) -> Any:
    """Return the result of `answer`. It is ready, so one step is enough; None if it is not."""
    try:
        next(iter(answer.__await__()))
    except StopIteration as result:
        return result.value
    return None
