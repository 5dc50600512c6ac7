"""The problems of a policy file, and the error that carries them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from deadlinemesh.errors import MeshError

__all__ = ["Fault", "Loc", "PolicyError", "Problem", "dotted"]

MOST_PROBLEMS = 100
"""Problems of one file that are reported. A reader corrects no more at once, and the report of each
may take a time that grows with the file."""

LONGEST_LINE = 1000
"""Characters of a problem as one line."""

Loc = tuple[str | int, ...]
"""The keys and indices that lead from the document's root to a value."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of a policy file."""

    file: str
    line: int
    """Line number from 1. 0: the file as a whole."""
    path: str
    """Place in the document, such as `tenants.acme.tier`. Empty: the document as a whole."""
    reason: str
    """The error and its remedy."""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        line = ": ".join(part for part in (place, self.path, self.reason) if part)
        if len(line) > LONGEST_LINE:
            line = f"{line[: LONGEST_LINE - 1]}…"
        # A quoted key may have line ends and terminal escapes, but a problem must be one safe line.
        return line if line.isprintable() else "".join(one if one.isprintable() else ascii(one)[1:-1] for one in line)


class PolicyError(MeshError):
    """The policy file cannot be used.

    It has every problem found, at most MOST_PROBLEMS, in the order of their lines. `str()` has one
    per line. `problems` is read only up to that number.
    """

    reason = "INVALID_POLICY"

    def __init__(self, problems: Iterable[Problem]) -> None:
        found = list(islice(problems, MOST_PROBLEMS + 1))
        shown = sorted(found[:MOST_PROBLEMS], key=lambda problem: problem.line)
        if len(found) > MOST_PROBLEMS:
            shown.append(
                Problem(shown[-1].file, 0, "", f"has more than {MOST_PROBLEMS} problems: put these right first")
            )
        self.problems = tuple(shown)
        super().__init__("")
        self.args = ("\n".join(map(str, self.problems)),)  # not shortened: an operator reads all


@dataclass(frozen=True, slots=True)
class Fault:
    """A problem without its line."""

    loc: Loc
    reason: str
    at_key: bool = False
    """True if the key is wrong, not its value."""


def dotted(loc: Loc) -> str:
    """`loc` as text: `tenants.acme.models[0]` for `("tenants", "acme", "models", 0)`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")
