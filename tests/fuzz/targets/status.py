"""The status of a failed call, as an error of the mesh: lines of JSON with the code's number, the message, and the details, which
are a `google.rpc.Status`, or a text with its bytes.
"""

from __future__ import annotations

import json
import math
from typing import Any

import grpc
from google.protobuf import json_format
from google.rpc import error_details_pb2, status_pb2
from tests.fuzz.reading import json_lines

from deadlinemesh.errors import DeadlineSpent, DeadlineSpentUpstream, InvalidRequest, MeshError
from deadlinemesh.transport.status import error_from, status_of

JSON_LINES = True
KEY = "grpc-status-details-bin"
CODES = list(grpc.StatusCode)
MOST_BYTES = 8192
"""Of all trailing metadata: a client on the C core refuses what is larger."""

DETAILS = (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo)
"""Named, so that they can be read in JSON."""


def target(data: bytes) -> None:
    code, message, written = (*json_lines(data), None, None, None)[:3]
    status = CODES[code % len(CODES) if isinstance(code, int) else 2]
    details = _details(written, status)
    metadata = grpc.aio.Metadata((KEY, details)) if details else None
    said = message.encode(errors="replace").decode() if isinstance(message, str) else None
    error = error_from(grpc.aio.AioRpcError(status, grpc.aio.Metadata(), metadata, said), "an upstream")
    _check(error)
    _check_again(error)


def _details(written: Any, code: grpc.StatusCode) -> bytes:
    if isinstance(written, str):
        return written.encode("latin-1", "replace")
    sound = json.dumps(written).replace("\\ud", "\\u0d")  # no message holds lone surrogates
    try:
        status = json_format.Parse(sound, status_pb2.Status())
    except (json_format.ParseError, AttributeError, OverflowError, TypeError, ValueError, RecursionError):
        return b""
    status.code = status.code or code.value[0]  # in contradiction to the status, details are not read
    return bytes(status.SerializeToString())


def _check(error: MeshError) -> None:
    wait = getattr(error, "retry_after", None)
    assert wait is None or (wait >= 0 and math.isfinite(wait)), wait


def _check_again(error: MeshError) -> None:
    """The error goes on to the next hop, and is the same there."""
    told = status_of(error)
    size = len(told.details.encode()) * 3 + sum(len(key) + len(value) + 32 for key, value in told.trailing_metadata)
    assert size <= MOST_BYTES, size
    sent = grpc.aio.AioRpcError(
        told.code, grpc.aio.Metadata(), grpc.aio.Metadata(*told.trailing_metadata), told.details
    )
    again = error_from(sent, "an upstream")
    expected = DeadlineSpentUpstream if isinstance(error, DeadlineSpent) else type(error)
    assert type(again) is expected, (type(error), type(again))
    assert isinstance(again, InvalidRequest) == isinstance(error, InvalidRequest)
    _check(again)
