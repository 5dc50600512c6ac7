"""What a call's metadata says, encoded and decoded."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deadlinemesh.deadline import DeadlineContext, VirtualClock
from deadlinemesh.errors import shown
from deadlinemesh.identity.peers import IDENTITY, Identity, identity_of
from deadlinemesh.transport import Arrival, wire
from deadlinemesh.transport.wire import LEAST_TRANSIT, REMAINING_US, TRACEPARENT

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
CONTEXT = DeadlineContext("acme", 10.0, "free", TRACE_ID, "run-1", 0.0, VirtualClock())


@pytest.mark.parametrize(
    ("seconds", "sent"),
    [
        (10.0, "9999850"),
        (1.0000019, "999851"),
        (0.0001509, "0"),
        (0.0001, "0"),
        (0.0, "0"),
        (300.0, "299999850"),
        (31_536_000.0, "31535999999850"),
    ],
)
def test_the_rest_is_sent_as_it_will_be_when_it_is_read_in_whole_microseconds_rounded_down(
    seconds: float, sent: str
) -> None:
    assert dict(wire.encode(CONTEXT, seconds, "secret"))[REMAINING_US] == sent


@given(st.floats(0.0, 1e6))
def test_the_rest_never_grows_on_the_way_and_loses_less_than_two_microseconds_beside_the_transit(
    seconds: float,
) -> None:
    arrived, _, _ = wire.decode(wire.encode(CONTEXT, seconds, "secret"))
    assert arrived is not None
    assert arrived <= seconds + 1e-9
    assert arrived > seconds - LEAST_TRANSIT - 2e-6


def test_everything_that_is_sent_arrives() -> None:
    sent = wire.encode(CONTEXT, CONTEXT.remaining, "secret")
    assert wire.decode(sent) == (10.0 - LEAST_TRANSIT, dict(sent)[IDENTITY], None)


@given(tenant=st.text("abc-._:/@ ="), tier=st.text("abc-"), run=st.text("abc-0123"))
def test_identities_arrive_as_they_were_sent(tenant: str, tier: str, run: str) -> None:
    context = replace(CONTEXT, tenant_id=tenant, tier=tier, run_id=run)
    _, identity, _ = wire.decode(wire.encode(context, 1.0, "secret"))
    assert identity_of(identity) == Identity(b"secret", tenant, tier, run, TRACE_ID)


@pytest.mark.parametrize(
    ("exact", "native", "remaining"),
    [
        ("5000000", None, 5.0),
        ("5000000", 8.0, 5.0),
        ("5000000", 3.0, 3.0),
        ("0", 3.0, 0.0),
        ("9999999999999999", None, 9_999_999_999.999999),
        (None, 3.0, 3.0),
        (None, None, None),
    ],
)
def test_the_tighter_of_the_two_deadlines_counts(
    exact: str | None, native: float | None, remaining: float | None
) -> None:
    arrival = Arrival("/some.Service/Method", [] if exact is None else [(REMAINING_US, exact)], 0.0, native)
    assert (arrival.remaining, arrival.malformed) == (remaining, None)


def test_of_a_rest_that_was_sent_twice_the_tighter_counts() -> None:
    for twice in (("5000000", "3000000"), ("3000000", "5000000")):
        assert wire.decode([(REMAINING_US, one) for one in twice])[0] == 3.0


@pytest.mark.parametrize(
    "malformed",
    [
        *("", " ", "-1", "+1", "1.5", "1e6", "1_000", " 5000000", "5000000 ", "5000000\n", "0x10"),
        *("inf", "nan", "soon", "١٢٣", "²", "10000000000000000", "9" * 400),
        b"5000000",
    ],
)
def test_a_rest_that_is_none_is_told_of_and_ignored(malformed: str | bytes) -> None:
    exact, _, ignored = wire.decode([(REMAINING_US, malformed)])
    assert (exact, ignored) == (None, shown(malformed, 100))


@given(st.one_of(st.text(), st.binary()), st.one_of(st.none(), st.floats(0, 1e9)))
def test_no_value_makes_decoding_fail_or_the_deadline_later_than_the_native_one(
    value: str | bytes, native: float | None
) -> None:
    sent = [(name, value) for name in (REMAINING_US, IDENTITY, TRACEPARENT)]
    arrival = Arrival("/some.Service/Method", sent, 0.0, native)
    identity_of(arrival.identity)
    if native is not None:
        assert arrival.remaining is not None
        assert arrival.remaining <= native


@pytest.mark.parametrize(
    "malformed",
    [
        *(
            "",
            "acme",
            "tenant=acme",
            "token=t;tenant=acme;tier=free;run=1",
            "tenant=acme;token=t;tier=free;run=1;trace=",
        ),
        *("token=t;tenant=a;tier=b;run=c;trace=;more=d", "token=t;tenant=a;b;tier=free;run=1;trace="),
        *(" token=t;tenant=a;tier=b;run=c;trace=", "token=t;tenant=a;tier=b;run=c;trace=ABC"),
        b"token=t;tenant=a;tier=b;run=c;trace=",
    ],
)
def test_an_identity_that_is_none_is_nobodys(malformed: str | bytes) -> None:
    _, identity, _ = wire.decode([(IDENTITY, malformed)])
    assert identity_of(identity) == Identity(b"", "", "", "", "")


def test_an_identity_needs_no_trace() -> None:
    assert identity_of("token=t;tenant=a;tier=b;run=c;trace=") == Identity(b"t", "a", "b", "c", "")


@pytest.mark.parametrize(
    ("value", "trace_id"),
    [
        (f"00-{TRACE_ID}-00f067aa0ba902b7-01", TRACE_ID),
        (f"00-{TRACE_ID}-00f067aa0ba902b7-00", TRACE_ID),
        (f"00-{TRACE_ID.upper()}-00f067aa0ba902b7-01", ""),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", ""),
        (f"00-{TRACE_ID}-{'0' * 16}-01", ""),
        (f"01-{TRACE_ID}-00f067aa0ba902b7-01", ""),
        (f"00-{TRACE_ID}-00f067aa0ba902b7", ""),
        (f"00-{TRACE_ID}-00f067aa0ba902b7-01-more", ""),
        ("", ""),
    ],
)
def test_a_trace_context_is_read_as_w3c_version_00(value: str, trace_id: str) -> None:
    assert wire.trace_id_of(value) == trace_id


def test_a_new_trace_id_is_a_valid_one() -> None:
    for _ in range(100):
        assert wire.trace_id_of(f"00-{wire.new_trace_id()}-00f067aa0ba902b7-01")
