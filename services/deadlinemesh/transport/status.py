"""Maps errors to gRPC statuses, and statuses back to errors. No other module does this.

Each status has a `google.rpc.ErrorInfo` of the domain `deadlinemesh`. The status of a refused
request also has a `BadRequest`, and that of a temporary refusal a `RetryInfo`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from deadlinemesh.deadline import DeadlineContext, current_or_none
from deadlinemesh.errors import (
    Cause,
    ClientCancelled,
    DeadlineSpent,
    DeadlineSpentUpstream,
    Doomed,
    Draining,
    InternalFailure,
    InvalidRequest,
    MeshError,
    NoDeadline,
    NotFound,
    Shed,
    TooLarge,
    Unauthenticated,
    UpstreamFailed,
    UpstreamRefused,
    Violation,
)
from deadlinemesh.telemetry.logs import cut
from deadlinemesh.transport.codec import microseconds

__all__ = ["DOMAIN", "NO_METHOD", "code_of", "error_from", "status_of"]

_LOG = logging.getLogger("deadlinemesh.transport")

DOMAIN = "deadlinemesh"

_CODES: dict[type, grpc.StatusCode] = {
    NotFound: grpc.StatusCode.NOT_FOUND,
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    NoDeadline: grpc.StatusCode.FAILED_PRECONDITION,
    TooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineSpent: grpc.StatusCode.DEADLINE_EXCEEDED,
    DeadlineSpentUpstream: grpc.StatusCode.DEADLINE_EXCEEDED,
    Doomed: grpc.StatusCode.DEADLINE_EXCEEDED,
    ClientCancelled: grpc.StatusCode.CANCELLED,
    Shed: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Draining: grpc.StatusCode.UNAVAILABLE,
    UpstreamFailed: grpc.StatusCode.UNAVAILABLE,
    MeshError: grpc.StatusCode.INTERNAL,
}

_BY_REASON: dict[str, type[MeshError]] = {
    kind.reason: kind
    for kind in (
        *(Unauthenticated, NoDeadline, TooLarge),
        *(ClientCancelled, Shed, Doomed, Draining, UpstreamFailed, InternalFailure),
    )
}


_UNHEALTHY = "backend unhealthy"
"""End of gRPC's status message for a call if no peer reported that it serves."""
_OVERSIZED = "message larger than max"
"""Part of gRPC's status message for a call with a message that is too large to send or
to accept.
"""
_LASTING = "lasting"
"""Key in an error's metadata. If set, a retry would give the same error."""

# All trailing metadata together must stay below 8 KiB. A client on the C core refuses more, and
# sees neither code nor cause. In `grpc-message` a byte beyond ASCII takes three, and the details
# contain the message again.
_MESSAGE_BYTES = 1000
_VIOLATIONS_BYTES = 2500
_VIOLATION_BYTES = 500
_NAME_BYTES = 100


NO_METHOD = rpc_status.to_status(
    status_pb2.Status(code=grpc.StatusCode.UNIMPLEMENTED.value[0], message="there is no such method here")
)
"""gRPC's own status for a method that is not served: without details of ours."""


def code_of(error: MeshError) -> grpc.StatusCode:
    """The gRPC status code of `error`."""
    return next(_CODES[kind] for kind in type(error).__mro__ if kind in _CODES)


def status_of(error: MeshError, context: DeadlineContext | None = None) -> grpc.Status:
    """The rich status of `error`. `context` is the one in force when it happened. It adds
    `granted_ms` and `elapsed_ms`.
    """
    # A peer's error keeps the names that the peer gave.
    hop, phase = (_fitting(name, _NAME_BYTES) for name in (error.hop, error.phase))
    known = {"hop": hop, "phase": phase, _LASTING: "true" if isinstance(error, UpstreamRefused) else ""}
    if context is not None:
        known["granted_ms"] = f"{context.granted * 1000:.3f}"
        known["elapsed_ms"] = f"{context.elapsed * 1000:.3f}"
    details: list[Message] = [
        error_details_pb2.ErrorInfo(
            reason=error.reason, domain=DOMAIN, metadata={key: value for key, value in known.items() if value}
        )
    ]
    if isinstance(error, InvalidRequest):
        details.append(_bad_request(error.violations))
    retry_after = getattr(error, "retry_after", None)
    if retry_after is not None and not math.isnan(retry_after):
        delay = duration_pb2.Duration()
        delay.FromMicroseconds(microseconds(retry_after))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=code_of(error).value[0], message=_fitting(str(error), _MESSAGE_BYTES))
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return rpc_status.to_status(status)


def _bad_request(violations: Sequence[Violation]) -> error_details_pb2.BadRequest:
    """As many of the violations as fit, and the number of the others."""
    told = error_details_pb2.BadRequest()
    for number, violation in enumerate(violations):
        if told.ByteSize() > _VIOLATIONS_BYTES - 2 * _VIOLATION_BYTES:
            told.field_violations.add(description=f"and {len(violations) - number} more")
            break
        field, description = (_fitting(text, _VIOLATION_BYTES) for text in (violation.field, violation.description))
        told.field_violations.add(field=field, description=description)
    return told


def _fitting(text: str, most: int) -> str:
    """`text` without lone surrogates, as no message can hold them. Cut if longer than
    `most` bytes.
    """
    encoded = text[: most + 1].encode(errors="replace")  # a character is at least one byte
    return encoded.decode() if len(encoded) <= most else encoded[: most - 4].decode(errors="ignore") + " …"


def error_from(error: grpc.aio.AioRpcError, upstream: str, *, in_its_words: bool = False) -> MeshError:
    """The mesh's error for a failed call to `upstream`.

    A deadline spent further down becomes DeadlineSpentUpstream and keeps the name of the hop that
    reported it. A status that no hop of the mesh wrote is judged by its code alone.

    The text of such a status may contain addresses, and a tenant may read the error. So the text
    goes to the log only. With `in_its_words`, which is for clients, the error contains it.

        try:
            reply = await stub.Search(request)
        except grpc.aio.AioRpcError as error:
            raise error_from(error, "search") from error
    """
    info, violations, retry_after = _details_of(error)
    message = error.details() or error.code().name
    if info is None:
        return _without_details(error, upstream, message, retry_after, in_its_words)
    hop, phase = info.metadata.get("hop", upstream), info.metadata.get("phase", "")
    if info.reason in (Cause.DEADLINE_SPENT, Cause.DEADLINE_SPENT_UPSTREAM):
        return DeadlineSpentUpstream(message, hop=hop, phase=phase)
    if info.reason in (InvalidRequest.reason, NotFound.reason):
        return (NotFound if info.reason == NotFound.reason else InvalidRequest)(violations, hop=hop)
    kind = _BY_REASON.get(info.reason, InternalFailure)
    if kind is UpstreamFailed and info.metadata.get(_LASTING) == "true":
        kind = UpstreamRefused
    if issubclass(kind, (Shed, UpstreamFailed)):
        return kind(message, retry_after=retry_after, hop=hop, phase=phase)
    return kind(message, hop=hop, phase=phase)


def _without_details(
    error: grpc.aio.AioRpcError, upstream: str, message: str, retry_after: float | None, in_its_words: bool
) -> MeshError:
    if not in_its_words:
        _LOG.warning("%s answered %s: %s", upstream, error.code().name, cut(message))
    said = f": {message}" if in_its_words else ""
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        own = current_or_none()
        if own is not None and own.is_expired:
            return DeadlineSpent(f"the deadline passed while {upstream} was at work", hop=upstream)
        return DeadlineSpentUpstream(f"{upstream} says that its deadline passed{said}", hop=upstream)
    if error.code() is grpc.StatusCode.UNAVAILABLE and message.endswith(_UNHEALTHY):
        return Draining(f"every instance of {upstream} is shutting down", hop=upstream)
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and _OVERSIZED in message:
        return TooLarge(f"a message to or from {upstream} is larger than it may be{said}", hop=upstream)
    return UpstreamFailed(f"{upstream} answered {error.code().name}{said}", retry_after=retry_after, hop=upstream)


def _details_of(
    error: grpc.aio.AioRpcError,
) -> tuple[error_details_pb2.ErrorInfo | None, tuple[Violation, ...], float | None]:
    info: error_details_pb2.ErrorInfo | None = None
    violations: tuple[Violation, ...] = ()
    retry_after: float | None = None
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]  # it has all that is read of a call
        for packed in () if status is None else status.details:
            if packed.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
                candidate = error_details_pb2.ErrorInfo()
                packed.Unpack(candidate)
                info = candidate if candidate.domain == DOMAIN else info
            elif packed.Is(error_details_pb2.BadRequest.DESCRIPTOR):
                bad = error_details_pb2.BadRequest()
                packed.Unpack(bad)
                violations = tuple(Violation(one.field, one.description) for one in bad.field_violations)
            elif packed.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
                retry = error_details_pb2.RetryInfo()
                packed.Unpack(retry)
                retry_after = max(0.0, retry.retry_delay.ToNanoseconds() / 1e9)
    except (ValueError, DecodeError):
        # Unreadable, or in contradiction to the status: then neither can be trusted.
        return None, (), None
    return info, violations, retry_after
