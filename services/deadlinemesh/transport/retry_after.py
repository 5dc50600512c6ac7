"""`Retry-After`, as HTTP upstreams send it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

__all__ = ["retry_after"]

_SECONDS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?", re.ASCII)


def retry_after(headers: Mapping[str, str], wall_now: float | None = None) -> float | None:
    """Seconds that `Retry-After` asks for, as a number or a date; None if it is missing or
    unreadable.

    A date is compared with the response's own `Date`, because the same clock wrote both. Without a
    `Date` it is compared with `wall_now`, our Unix time, if given. `headers` must find names in
    lower case, like httpx's.

        delay = retry_after(response.headers, time.time())
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
