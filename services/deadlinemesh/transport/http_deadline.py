"""The deadline over HTTP: `X-Request-Deadline` and `X-Request-Timeout-Ms`, encoded and decoded.
Pure.

An absolute time is only as good as the agreement of two hosts' clocks. So a duration travels with
it, and the tighter of the two wins. The duration is in whole milliseconds, rounded down. The
absolute time is exact to the microsecond.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["DEADLINE_HEADER", "TIMEOUT_HEADER", "Decoded", "decode", "encode"]

DEADLINE_HEADER = "X-Request-Deadline"
"""Header name. Its value is Unix seconds, decimal."""
TIMEOUT_HEADER = "X-Request-Timeout-Ms"
"""Header name. Its value is a duration in whole milliseconds."""

SKEW = 60.0
"""Seconds by which the two headers may disagree. A larger difference means a wrong clock, and the
absolute time is ignored.
"""

LONGEST = 366 * 86400.0
"""Seconds. More than a year is a mistake, such as a Unix time in milliseconds."""

_DECIMAL = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,9})?", re.ASCII)
_WHOLE = re.compile(r"[0-9]{1,15}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Decoded:
    """The result of reading the two headers."""

    remaining: float | None
    """Seconds left, never negative; None if no usable header was sent."""
    skewed: bool
    """True if the absolute time was ignored because it contradicts the duration."""
    malformed: tuple[str, ...]
    """Names of the headers that were ignored because they cannot be read."""


def encode(remaining_s: float, wall_now: float) -> dict[str, str]:
    """The headers for `remaining_s` seconds left at the Unix time `wall_now`. Both values are
    rounded down, so the deadline never becomes later.

    Raises ValueError unless both numbers are finite.

        headers = encode(current().remaining, time.time())
        response = await client.get(url, headers=headers)
    """
    if not (math.isfinite(remaining_s) and math.isfinite(wall_now)):
        raise ValueError(f"a deadline needs finite numbers, not {remaining_s} s from {wall_now}")
    left = max(0.0, remaining_s)
    seconds, micros = divmod(math.floor(wall_now * 1_000_000) + math.floor(left * 1_000_000), 1_000_000)
    return {DEADLINE_HEADER: f"{seconds}.{micros:06d}", TIMEOUT_HEADER: str(math.floor(left * 1000))}


def decode(headers: Mapping[str, str], wall_now: float) -> Decoded:
    """Read the headers, in any letter case, that arrived at the Unix time `wall_now`. Unreadable
    headers are reported in the result.

        arrived = decode(request.headers, time.time())
        if arrived.remaining is not None:
            deadline_at = clock.monotonic() + arrived.remaining
    """
    sent = {name.lower(): value.strip() for name, value in headers.items()}
    malformed = []
    timeout = until = None
    if (text := sent.get(DEADLINE_HEADER.lower())) is not None:
        until = float(text) - wall_now if _DECIMAL.fullmatch(text) else math.inf
        if until > LONGEST:
            until = None
            malformed.append(DEADLINE_HEADER)
    if (text := sent.get(TIMEOUT_HEADER.lower())) is not None:
        timeout = int(text) / 1000 if _WHOLE.fullmatch(text) else math.inf
        if timeout > LONGEST:
            timeout = None
            malformed.append(TIMEOUT_HEADER)
    skewed = timeout is not None and until is not None and abs(until - timeout) > SKEW
    usable = [seconds for seconds in (timeout, None if skewed else until) if seconds is not None]
    return Decoded(max(0.0, min(usable)) if usable else None, skewed, tuple(malformed))
