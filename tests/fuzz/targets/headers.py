"""What HTTP headers say of time: a Unix time, and lines of `name: value`."""

from __future__ import annotations

import math

from tests.fuzz.reading import headers, text

from deadlinemesh.transport.http_deadline import DEADLINE_HEADER, LONGEST, TIMEOUT_HEADER, decode, encode
from deadlinemesh.transport.retry_after import retry_after

NOW_S = 1_790_000_000.0


def target(data: bytes) -> None:
    first, _, rest = data.partition(b"\n")
    sent = {name: value for name, value in headers(rest) if isinstance(value, str)}
    _check_deadline(sent, _time(text(first)))
    for now in (None, _time(text(first))):
        wait = retry_after({name.lower(): value for name, value in sent.items()}, now)
        assert wait is None or (math.isfinite(wait) and wait >= 0), wait


def _check_deadline(sent: dict[str, str], now: float) -> None:
    said = decode(sent, now)
    assert set(said.malformed) <= {DEADLINE_HEADER, TIMEOUT_HEADER}
    if said.remaining is None:
        assert not said.skewed
        return
    assert 0 <= said.remaining <= LONGEST
    again = decode(encode(said.remaining, now), now)
    assert again.remaining is not None
    assert not again.malformed
    assert not again.skewed
    assert said.remaining - 0.0011 <= again.remaining <= said.remaining + 1e-6


def _time(written: str) -> float:
    try:
        time = float(written)
    except ValueError:
        return NOW_S
    return time if 0 <= time <= 4e9 else NOW_S
