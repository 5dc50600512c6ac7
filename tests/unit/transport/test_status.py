"""Errors become statuses and statuses the same errors again, whoever wrote them."""

from __future__ import annotations

import inspect
import math
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from deadlinemesh import errors
from deadlinemesh.deadline import DeadlineContext, VirtualClock, entered
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
    Stopped,
    TooLarge,
    Unauthenticated,
    UpstreamFailed,
    UpstreamRefused,
    Violation,
)
from deadlinemesh.transport.status import DOMAIN, code_of, error_from, status_of

Code = grpc.StatusCode
VIOLATIONS = (Violation("tenant", "is empty"), Violation("tools[2]", "is unknown: one of a, b"))

# Each error with its code, and the error that a caller one hop up is given.
TABLE: list[tuple[MeshError, grpc.StatusCode, type[MeshError]]] = [
    (DeadlineSpent("spent", hop="h", phase="tool_call"), Code.DEADLINE_EXCEEDED, DeadlineSpentUpstream),
    (DeadlineSpentUpstream("spent", hop="h", phase="tool_call"), Code.DEADLINE_EXCEEDED, DeadlineSpentUpstream),
    (Doomed("doomed", hop="h", phase="llm_queue"), Code.DEADLINE_EXCEEDED, Doomed),
    (ClientCancelled("left", hop="h"), Code.CANCELLED, ClientCancelled),
    (Shed("busy", hop="h", phase="admission"), Code.RESOURCE_EXHAUSTED, Shed),
    (Shed("busy", hop="h", retry_after=1.25), Code.RESOURCE_EXHAUSTED, Shed),
    (Draining("leaving", hop="h"), Code.UNAVAILABLE, Draining),
    (UpstreamFailed("reset", hop="h"), Code.UNAVAILABLE, UpstreamFailed),
    (UpstreamRefused("404", hop="h"), Code.UNAVAILABLE, UpstreamRefused),
    (UpstreamFailed("429", hop="h", retry_after=0.0), Code.UNAVAILABLE, UpstreamFailed),
    (InternalFailure("bug", hop="h"), Code.INTERNAL, InternalFailure),
    (InvalidRequest(VIOLATIONS, hop="h"), Code.INVALID_ARGUMENT, InvalidRequest),
    (NotFound(VIOLATIONS, hop="h"), Code.NOT_FOUND, NotFound),
    (Unauthenticated("who?", hop="h"), Code.UNAUTHENTICATED, Unauthenticated),
    (NoDeadline("until when?", hop="h"), Code.FAILED_PRECONDITION, NoDeadline),
    (TooLarge("5 MiB of 4", hop="h"), Code.RESOURCE_EXHAUSTED, TooLarge),
    (MeshError("something", hop="h"), Code.INTERNAL, InternalFailure),
]

crossing = pytest.mark.parametrize(("error", "code", "received"), TABLE, ids=[repr(error) for error, _, _ in TABLE])


def as_received(status: grpc.Status) -> grpc.aio.AioRpcError:
    trailing = grpc.aio.Metadata(*status.trailing_metadata)
    return grpc.aio.AioRpcError(status.code, grpc.aio.Metadata(), trailing, status.details)


def bare(code: grpc.StatusCode, details: str = "") -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


def rich(code: int, message: str, *details: Message) -> grpc.aio.AioRpcError:
    status = status_pb2.Status(code=code, message=message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return as_received(rpc_status.to_status(status))


def details_of(error: Any) -> dict[str, Message]:
    status = rpc_status.from_call(error)
    assert status is not None
    found: dict[str, Message] = {}
    for packed in status.details:
        kind = getattr(error_details_pb2, packed.TypeName().rpartition(".")[2])
        message = kind()
        assert packed.Unpack(message)
        found[kind.__name__] = message
    return found


def test_the_table_has_every_error_there_is() -> None:
    every = {kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, MeshError)}
    assert {type(error) for error, _, _ in TABLE} == every - {Stopped}


def test_every_cause_has_an_error_of_its_own_name() -> None:
    assert {error.cause for error, _, _ in TABLE if isinstance(error, Stopped)} == set(Cause)
    assert all(error.reason == error.cause.value for error, _, _ in TABLE if isinstance(error, Stopped))


@crossing
def test_an_error_crosses_the_wire(error: MeshError, code: grpc.StatusCode, received: type[MeshError]) -> None:
    status = status_of(error)
    assert (code_of(error), status.code, status.details) == (code, code, str(error))
    arrived = error_from(as_received(status), "tool-runner")
    assert type(arrived) is received
    assert (str(arrived), arrived.hop, arrived.phase) == (str(error), "h", error.phase)
    assert getattr(arrived, "retry_after", None) == getattr(error, "retry_after", None)
    assert getattr(arrived, "violations", None) == getattr(error, "violations", None)


@crossing
def test_every_status_says_why_in_an_error_info(
    error: MeshError, code: grpc.StatusCode, received: type[MeshError]
) -> None:
    info = details_of(as_received(status_of(error)))["ErrorInfo"]
    assert isinstance(info, error_details_pb2.ErrorInfo)
    expected = {"hop": "h", "phase": error.phase} if error.phase else {"hop": "h"}
    if isinstance(error, UpstreamRefused):
        expected["lasting"] = "true"
    assert (info.reason, info.domain, dict(info.metadata)) == (error.reason, "deadlinemesh", expected)


def test_a_status_tells_how_much_was_granted_and_spent() -> None:
    clock = VirtualClock()
    context = DeadlineContext("acme", 10.0, "free", "f" * 32, "run-1", 0.0, clock)
    clock.advance(2.5)
    info: Any = details_of(as_received(status_of(DeadlineSpent("spent", hop="h"), context)))["ErrorInfo"]
    assert dict(info.metadata) == {"hop": "h", "granted_ms": "10000.000", "elapsed_ms": "2500.000"}


def test_a_refused_request_lists_every_violation_in_a_bad_request() -> None:
    bad = details_of(as_received(status_of(InvalidRequest(VIOLATIONS))))["BadRequest"]
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert [(one.field, one.description) for one in bad.field_violations] == [
        (violation.field, violation.description) for violation in VIOLATIONS
    ]


@pytest.mark.parametrize("error", [Shed("busy", retry_after=1.25), UpstreamFailed("429", retry_after=1.25)])
def test_a_refusal_that_passes_says_when_in_a_retry_info(error: MeshError) -> None:
    retry = details_of(as_received(status_of(error)))["RetryInfo"]
    assert isinstance(retry, error_details_pb2.RetryInfo)
    assert retry.retry_delay.ToNanoseconds() == 1_250_000_000


@pytest.mark.parametrize(
    ("wait", "told"), [(math.inf, 366 * 86400.0), (1e20, 366 * 86400.0), (-5.0, 0.0), (math.nan, None)]
)
def test_a_wait_that_makes_no_sense_does_not_cost_the_client_the_cause(wait: float, told: float | None) -> None:
    arrived = error_from(as_received(status_of(UpstreamFailed("429", retry_after=wait))), "llm-proxy")
    assert (type(arrived), getattr(arrived, "retry_after", None)) == (UpstreamFailed, told)


@pytest.mark.parametrize("letter", ["x", "%", "ы", "界", "\ud800"])
def test_a_status_fits_into_what_a_client_accepts_whatever_the_error_quotes(letter: str) -> None:
    violations = [Violation(f"history[{number}]" + letter * 9000, letter * 9000) for number in range(1000)]
    for error in (UpstreamFailed(letter * 90_000), InvalidRequest(violations), NotFound(violations[:1])):
        status = status_of(error)
        encoded = "".join(
            one if " " <= one <= "~" and one != "%" else "%xx" * len(one.encode()) for one in status.details
        )
        assert len(encoded) + sum(len(key) + len(value) + 32 for key, value in status.trailing_metadata) < 8000
        assert type(error_from(as_received(status), "orchestrator")) is type(error)


def test_violations_that_do_not_fit_are_counted() -> None:
    arrived = error_from(as_received(status_of(InvalidRequest(VIOLATIONS * 500))), "orchestrator")
    assert isinstance(arrived, InvalidRequest)
    assert arrived.violations[:2] == VIOLATIONS
    assert arrived.violations[-1].description == f"and {1001 - len(arrived.violations)} more"


def test_a_refusal_that_does_not_know_when_has_no_retry_info() -> None:
    assert set(details_of(as_received(status_of(Shed("busy"))))) == {"ErrorInfo"}


@pytest.mark.parametrize(
    "code", [code for code in Code if code not in (Code.OK, Code.DEADLINE_EXCEEDED)], ids=lambda code: code.name
)
def test_a_foreign_status_is_a_failed_upstream(code: grpc.StatusCode) -> None:
    arrived = error_from(bare(code, "as it said"), "crm")
    assert type(arrived) is UpstreamFailed
    assert (str(arrived), arrived.hop, arrived.retry_after) == (f"crm answered {code.name}", "crm", None)


@pytest.mark.parametrize("code", list(Code), ids=lambda code: code.name)
@pytest.mark.parametrize("words", ["", "message larger than max ", "backend unhealthy"])
def test_a_foreign_statuss_words_go_to_the_log(
    code: grpc.StatusCode, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    said = f"last error: ipv4:10.1.2.3:50052: refused{words}"
    assert "10.1.2.3" not in str(error_from(bare(code, said), "crm"))
    assert "10.1.2.3" in caplog.text
    assert len(str(error_from(bare(code, "x" * 90_000), "crm"))) < 200
    assert len(caplog.records[-1].getMessage()) < 300


def test_a_client_is_told_a_foreign_statuss_words() -> None:
    arrived = error_from(bare(Code.UNAVAILABLE, "as it said"), "crm", in_its_words=True)
    assert str(arrived) == "crm answered UNAVAILABLE: as it said"


def test_a_foreign_deadline_exceeded_before_our_own_deadline_was_spent_further_down() -> None:
    assert type(error_from(bare(Code.DEADLINE_EXCEEDED), "crm")) is DeadlineSpentUpstream
    with entered(DeadlineContext("acme", 10.0, "free", "f" * 32, "run-1", 0.0, VirtualClock())):
        assert type(error_from(bare(Code.DEADLINE_EXCEEDED), "crm")) is DeadlineSpentUpstream


def test_a_foreign_deadline_exceeded_at_our_own_deadline_was_spent_here() -> None:
    with entered(DeadlineContext("acme", 10.0, "free", "f" * 32, "run-1", 0.0, VirtualClock(start=10.0))):
        assert type(error_from(bare(Code.DEADLINE_EXCEEDED), "crm")) is DeadlineSpent


def test_an_error_info_of_another_domain_is_foreign() -> None:
    info = error_details_pb2.ErrorInfo(reason="DEADLINE_SPENT", domain="googleapis.com")
    arrived = error_from(rich(code_pb2.UNAVAILABLE, "quota", info), "crm")
    assert type(arrived) is UpstreamFailed


def test_a_reason_of_a_newer_peer_is_an_internal_failure_that_keeps_its_words() -> None:
    info = error_details_pb2.ErrorInfo(reason="FROM_THE_FUTURE", domain=DOMAIN, metadata={"hop": "h"})
    arrived = error_from(rich(code_pb2.ABORTED, "new words", info), "llm-proxy")
    assert type(arrived) is InternalFailure
    assert (str(arrived), arrived.hop) == ("new words", "h")


def test_an_error_info_without_a_hop_is_put_down_to_the_upstream() -> None:
    info = error_details_pb2.ErrorInfo(reason="DRAINING", domain=DOMAIN)
    assert error_from(rich(code_pb2.UNAVAILABLE, "leaving", info), "llm-proxy").hop == "llm-proxy"


def test_details_that_contradict_the_status_are_not_trusted() -> None:
    honest = rich(code_pb2.UNAVAILABLE, "leaving", error_details_pb2.ErrorInfo(reason="DRAINING", domain=DOMAIN))
    forged = grpc.aio.AioRpcError(Code.INTERNAL, grpc.aio.Metadata(), honest.trailing_metadata(), "leaving")
    assert type(error_from(forged, "crm")) is UpstreamFailed


def test_details_that_cannot_be_read_are_not_trusted_either() -> None:
    trailing = grpc.aio.Metadata(("grpc-status-details-bin", b"\xff\xff\xff"))
    garbled = grpc.aio.AioRpcError(Code.UNAVAILABLE, grpc.aio.Metadata(), trailing, "leaving")
    assert type(error_from(garbled, "crm")) is UpstreamFailed


def test_a_failed_upstream_may_ask_for_patience_in_its_own_words() -> None:
    delay = error_details_pb2.RetryInfo()
    delay.retry_delay.FromMilliseconds(1500)
    arrived = error_from(rich(code_pb2.UNAVAILABLE, "quota", delay), "crm")
    assert isinstance(arrived, UpstreamFailed)
    assert arrived.retry_after == 1.5


def test_of_too_many_violations_the_first_are_told_and_how_many_more_there_are() -> None:
    many = [Violation(f"messages[{n}]", "is wrong" * 10) for n in range(100)]
    arrived = error_from(as_received(status_of(InvalidRequest(many))), "orchestrator")
    assert isinstance(arrived, InvalidRequest)
    *told, last = arrived.violations
    assert told == many[: len(told)]
    assert last == Violation("", f"and {100 - len(told)} more")
