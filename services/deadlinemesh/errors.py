"""The error tree of the mesh.

Code raises these errors. Only `transport.status` maps them to gRPC statuses and back. Each error of
stopped work has a `Cause`, the reason sent in `google.rpc.ErrorInfo`. Each error carries the facts
that its reader needs.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Any

__all__ = [
    "Cause",
    "ClientCancelled",
    "DeadlineSpent",
    "DeadlineSpentUpstream",
    "Doomed",
    "Draining",
    "InternalFailure",
    "InvalidRequest",
    "MeshError",
    "NoDeadline",
    "NotFound",
    "Shed",
    "Stopped",
    "TooLarge",
    "Unauthenticated",
    "UpstreamFailed",
    "UpstreamRefused",
    "Violation",
    "Violations",
    "WrongUsage",
    "choices",
    "shortened",
    "shown",
    "without_addresses",
]

MOST_VIOLATIONS = 20
"""Violations of one request that an error lists. Of the rest it gives only the number."""

MOST_CHOICES = 20
"""Valid choices that an error names."""

LONGEST_SHOWN = 60
"""Characters of a value that an error repeats."""

LONGEST_MESSAGE = 4000
"""Characters of an error's text. Our own texts are far shorter. This limits texts from
elsewhere.
"""


class Cause(StrEnum):
    """The reason why work stopped.

    Names are those of the `Cause` enum in `protos/`, without its prefix.
    """

    DEADLINE_SPENT = "DEADLINE_SPENT"
    DEADLINE_SPENT_UPSTREAM = "DEADLINE_SPENT_UPSTREAM"
    CLIENT_CANCELLED = "CLIENT_CANCELLED"
    SHED = "SHED"
    DOOMED = "DOOMED"
    DRAINING = "DRAINING"
    UPSTREAM_FAILED = "UPSTREAM_FAILED"
    INTERNAL = "INTERNAL"


class MeshError(Exception):
    """The base class. `reason` names the kind of error for machines; `str()` explains it to people.

    `hop` and `phase` are its origin; empty if unknown. An error that came over the wire keeps the
    `hop` and `phase` of its origin.
    """

    reason = "INTERNAL"

    def __init__(self, message: str, *, hop: str = "", phase: str = "") -> None:
        super().__init__(shortened(message, LONGEST_MESSAGE))
        self.hop = hop
        self.phase = phase


class Stopped(MeshError):
    """Work was stopped, or never begun, for one of the causes that the mesh distinguishes."""

    cause = Cause.INTERNAL

    def __init_subclass__(cls) -> None:
        cls.reason = cls.cause.value


class DeadlineSpent(Stopped):
    """The deadline passed at this hop."""

    cause = Cause.DEADLINE_SPENT


class DeadlineSpentUpstream(Stopped):
    """A hop further down reported that the deadline had passed there."""

    cause = Cause.DEADLINE_SPENT_UPSTREAM


class ClientCancelled(Stopped):
    """The caller cancelled or disconnected."""

    cause = Cause.CLIENT_CANCELLED


class Shed(Stopped):
    """Refused because of load. `retry_after` is in seconds, or None if no estimate exists."""

    cause = Cause.SHED

    def __init__(self, message: str, *, retry_after: float | None = None, hop: str = "", phase: str = "") -> None:
        super().__init__(message, hop=hop, phase=phase)
        self.retry_after = retry_after


class Doomed(Stopped):
    """Refused because it could not have finished in time."""

    cause = Cause.DOOMED


class Draining(Stopped):
    """The hop finishes its running work and accepts nothing new."""

    cause = Cause.DRAINING


class UpstreamFailed(Stopped):
    """A dependency failed for its own reason.

    `retry_after` is in seconds, as the dependency asked; None if it did not.
    """

    cause = Cause.UPSTREAM_FAILED
    retry_after: float | None = None  # also a class attribute: a subclass need not call __init__

    def __init__(self, message: str, *, retry_after: float | None = None, hop: str = "", phase: str = "") -> None:
        super().__init__(message, hop=hop, phase=phase)
        self.retry_after = retry_after


class UpstreamRefused(UpstreamFailed):
    """A dependency refused the request itself, and would refuse it again.

    It has the same Cause as UpstreamFailed. Only the retry logic distinguishes the two.
    """


class InternalFailure(Stopped):
    """A defect of the mesh, or a failure of a hop that gave no cause."""

    cause = Cause.INTERNAL


@dataclass(frozen=True, slots=True)
class Violation:
    """An error in one field, with a correct form."""

    field: str
    description: str


class WrongUsage(Exception):
    """The options of a command are inconsistent, or name something that does not exist.

    The message says how to correct them.
    """


class Violations:
    """Collects violations of one request: the first MOST_VIOLATIONS, then only their number.

    >>> found = Violations()
    >>> for number in range(22):
    ...     found.add(f"tools[{number}]", "is unknown")
    >>> len(found), found.told()[-1]
    (22, Violation(field='', description='and 2 more'))
    """

    def __init__(self) -> None:
        self._first: list[Violation] = []
        self._count = 0

    def add(self, field: str, description: str) -> None:
        """Note a violation."""
        self._count += 1
        if self._count <= MOST_VIOLATIONS:
            self._first.append(Violation(field, description))

    def told(self) -> list[Violation]:
        """The violations to report. If some were left out, the last one is their number."""
        left_out = self._count - len(self._first)
        return [*self._first, Violation("", f"and {left_out} more")] if left_out else list(self._first)

    def __len__(self) -> int:
        return self._count


class InvalidRequest(MeshError):
    """The request cannot be served as it is.

    It holds all violations given. Its text lists the first MOST_VIOLATIONS + 1, because the last
    one of `Violations.told()` may be a number.
    """

    reason = "INVALID_REQUEST"

    def __init__(self, violations: Sequence[Violation], *, hop: str = "") -> None:
        told = [f"{v.field}: {v.description}" if v.field else v.description for v in violations[: MOST_VIOLATIONS + 1]]
        if len(violations) > len(told):
            told.append(f"and {len(violations) - len(told)} more")
        super().__init__("; ".join(told), hop=hop)
        self.violations = tuple(violations)


class NotFound(InvalidRequest):
    """A name in the request is unknown. The violations name the valid choices."""

    reason = "NOT_FOUND"


class Unauthenticated(MeshError):
    """The caller did not prove its identity."""

    reason = "UNAUTHENTICATED"


class NoDeadline(MeshError):
    """Work was requested without a deadline. The mesh does no such work."""

    reason = "NO_DEADLINE"


class TooLarge(MeshError):
    """A message exceeds the hop's size limit."""

    reason = "TOO_LARGE"


def choices(names: Iterable[str]) -> str:
    """The valid choices as the end of a sentence: `one of a, b, c`, or `none is defined`.

    Names at most MOST_CHOICES of them.
    """
    rest = iter(names)
    listed = ", ".join(shortened(name, LONGEST_SHOWN) for name in islice(rest, MOST_CHOICES))
    more = sum(1 for _ in rest)
    return f"one of {listed}{f' and {more} more' if more else ''}" if listed else "none is defined"


def shortened(text: str, most: int) -> str:
    """`text`, cut to `most` characters, with a mark if it was longer."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def shown(value: Any, most: int = LONGEST_SHOWN, *, as_json: bool = False) -> str:
    """A value as an error message shows it: quoted, on one line, at most `most` characters.

    A large value is never formatted in full.

    >>> shown("x" * 4_000_000, 12)
    "'xxxxxxxx..."
    """
    if isinstance(value, str):
        value = value[:most]
    if as_json:
        return shortened(_beginning(_JSON.iterencode(value), most), most)
    if value is None:
        return "an empty value"
    return shortened(str(value).lower() if isinstance(value, bool) else _REPR.repr(value), most)


def _beginning(pieces: Iterator[str], most: int) -> str:
    """The first pieces, until they have more than `most` characters."""
    found, length = [], 0
    for piece in pieces:
        found.append(piece)
        length += len(piece)
        if length > most:
            break
    return "".join(found)


_JSON = json.JSONEncoder(ensure_ascii=False)
_REPR = reprlib.Repr()
_REPR.maxlevel = 3
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 200
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = _REPR.maxset = _REPR.maxfrozenset = 12


_ADDRESS = re.compile(
    r"\b[a-z][a-z0-9+.-]{0,30}://\S+"  # a URL
    r"|\b(?:ipv4|ipv6|unix|unix-abstract|vsock|dns):\S+"  # as gRPC writes a peer
    r"|\[[0-9a-f:.]{2,45}\](?::\d+)?"
    r"|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?"
    r"|(?<![\w:])(?:(?:[0-9a-f]{1,4}:){3,7}[0-9a-f:.]*|(?:[0-9a-f]{1,4}:){0,2}:[0-9a-f][0-9a-f:.]*)"
    r"|\b[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63}){0,9}:\d{2,5}\b"  # a host with its port
    r"|\b(?:[a-z0-9-]{1,63}\.){1,8}(?:svc|local|internal|cluster|lan|intra|corp)\b[a-z0-9.-]*"
    r"|\b(?:sk|pk|key|dm)[-_][\w-]{8,}",  # a key
    re.IGNORECASE,
)


def without_addresses(text: str, most: int = 500) -> str:
    """An external text that a tenant may read: without URLs, addresses and keys.

    It has at most `most` characters.
    """
    return shortened(_ADDRESS.sub("…", text[: 4 * most]), most)
