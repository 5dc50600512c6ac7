"""`Retry-After`, as HTTP upstreams send it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

__all__ = ["retry_after"]

_SECONDS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?", re.ASCII)


def retry_after(headers: Mapping[str, str], wall_now: float | None = None) -> float | None:
    """Seconds that `Retry-After` asks for, whether it is a number or a date; None where there is none that can be read.

    A date is compared with the answer's own `Date`, where there is one: the two were written by the same clock. Else with
    `wall_now`, our Unix time, if it is given.
    """
    wanted = headers.get("retry-after", "").strip()
    if _SECONDS.fullmatch(wanted):
        return float(wanted)
    until, said = _date(wanted), _date(headers.get("date", ""))
    now = wall_now if said is None else said.timestamp()
    return None if until is None or now is None else max(0.0, until.timestamp() - now)


def _date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)
