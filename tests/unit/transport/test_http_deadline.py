from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deadlinemesh.transport.http_deadline import DEADLINE_HEADER, TIMEOUT_HEADER, decode, encode

NOW = 1_800_000_000.0

CASES = [
    ("nothing was sent", None, None, None, False, ()),
    ("the duration alone", None, "1500", 1.5, False, ()),
    ("the absolute time alone", "1800000002.25", None, 2.25, False, ()),
    ("an absolute time without decimals", "1800000002", None, 2.0, False, ()),
    ("a tighter absolute time wins", "1800000001", "5000", 1.0, False, ()),
    ("a tighter duration wins", "1800000005", "1000", 1.0, False, ()),
    ("an absolute time in the past leaves nothing", "1799999990", "5000", 0.0, False, ()),
    ("a duration of 0 leaves nothing", None, "0", 0.0, False, ()),
    ("a disagreement of exactly 60 s is believed", "1800000001", "61000", 1.0, False, ()),
    ("a clock that is slow by more is not", "1799999999.999", "60000", 60.0, True, ()),
    ("a clock that is fast by more is not", "1800000100", "1000", 1.0, True, ()),
    ("surrounding blanks do not matter", " 1800000002.5 ", " 9000 ", 2.5, False, ()),
    ("nan is malformed", "nan", "1000", 1.0, False, (DEADLINE_HEADER,)),
    ("infinity is malformed", "inf", "Infinity", None, False, (DEADLINE_HEADER, TIMEOUT_HEADER)),
    ("a negative absolute time is malformed", "-1", None, None, False, (DEADLINE_HEADER,)),
    ("a negative duration is malformed", "1800000002", "-5", 2.0, False, (TIMEOUT_HEADER,)),
    ("empty headers are malformed", "", "", None, False, (DEADLINE_HEADER, TIMEOUT_HEADER)),
    ("an exponent is malformed", "1.8e9", "1e3", None, False, (DEADLINE_HEADER, TIMEOUT_HEADER)),
    ("a fraction of a millisecond is malformed", None, "12.5", None, False, (TIMEOUT_HEADER,)),
    ("digits of another script are malformed", None, "١٢", None, False, (TIMEOUT_HEADER,)),
    ("a Unix time in milliseconds is malformed", "1800000002000", "1000", 1.0, False, (DEADLINE_HEADER,)),
    ("a huge duration is malformed", None, "9" * 15, None, False, (TIMEOUT_HEADER,)),
    ("endless digits are malformed", "9" * 5000, "9" * 5000, None, False, (DEADLINE_HEADER, TIMEOUT_HEADER)),
    ("two values in one header are malformed", None, "100, 200", None, False, (TIMEOUT_HEADER,)),
]


@pytest.mark.parametrize(
    ("deadline", "timeout", "remaining", "skewed", "malformed"),
    [pytest.param(*case[1:], id=case[0]) for case in CASES],
)
def test_a_pair_of_headers_is_combined_by_taking_the_tighter(
    deadline: str | None, timeout: str | None, remaining: float | None, skewed: bool, malformed: tuple[str, ...]
) -> None:
    sent = {DEADLINE_HEADER: deadline, TIMEOUT_HEADER: timeout}
    decoded = decode({name: value for name, value in sent.items() if value is not None}, NOW)
    assert decoded.remaining == (None if remaining is None else pytest.approx(remaining, abs=1e-6))
    assert decoded.skewed is skewed
    assert decoded.malformed == malformed


def test_the_case_of_header_names_does_not_matter() -> None:
    assert decode({"x-request-deadline": "1800000003", "X-REQUEST-TIMEOUT-MS": "2000"}, NOW).remaining == 2.0


def test_the_headers_are_unix_seconds_to_the_microsecond_and_whole_milliseconds_rounded_down() -> None:
    assert encode(1.2345678, NOW) == {DEADLINE_HEADER: "1800000001.234567", TIMEOUT_HEADER: "1234"}


def test_a_spent_deadline_is_sent_as_nothing_left() -> None:
    assert encode(-3.0, NOW) == {DEADLINE_HEADER: "1800000000.000000", TIMEOUT_HEADER: "0"}


@pytest.mark.parametrize("remaining", [float("nan"), float("inf"), float("-inf")])
def test_a_deadline_that_is_no_number_is_not_sent(remaining: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        encode(remaining, NOW)


times = st.floats(min_value=0, max_value=4e9)


@given(remaining=st.floats(min_value=0, max_value=86400), wall=times)
def test_what_is_decoded_is_never_later_than_what_was_encoded_and_at_most_a_millisecond_earlier(
    remaining: float, wall: float
) -> None:
    decoded = decode(encode(remaining, wall), wall)
    assert decoded.remaining is not None
    assert decoded.malformed == ()
    assert not decoded.skewed
    # A Unix time as a float is itself exact to half a microsecond only.
    assert remaining - 0.001_002 <= decoded.remaining <= remaining + 1e-6


@given(remaining=st.floats(min_value=0, max_value=86400), wall=times, transit=st.floats(min_value=0, max_value=59))
def test_transit_is_charged_where_clocks_agree(remaining: float, wall: float, transit: float) -> None:
    decoded = decode(encode(remaining, wall), wall + transit)
    assert decoded.remaining == pytest.approx(max(0.0, remaining - transit), abs=0.001_01)


@given(deadline=st.text(max_size=40), timeout=st.text(max_size=40), wall=times)
def test_no_header_makes_decoding_fail_or_last_for_ever(deadline: str, timeout: str, wall: float) -> None:
    decoded = decode({DEADLINE_HEADER: deadline, TIMEOUT_HEADER: timeout}, wall)
    assert decoded.remaining is None or 0 <= decoded.remaining <= 366 * 86400
