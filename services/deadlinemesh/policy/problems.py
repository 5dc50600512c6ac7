"""What is wrong with a policy file, and the error that carries all of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from deadlinemesh.errors import MeshError

__all__ = ["Fault", "Loc", "PolicyError", "Problem", "dotted"]

MOST_PROBLEMS = 100
"""Told of one file. A reader puts no more right at once, and each may take as long as the file to be told."""

LONGEST_LINE = 1000
"""Characters of a problem's line."""

Loc = tuple[str | int, ...]
"""The keys and indices that lead from the document's root to a value."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to put right."""

    file: str
    line: int
    """From 1. 0: the file as a whole."""
    path: str
    """Such as `tenants.acme.tier`. Empty: the document as a whole."""
    reason: str
    """What is wrong and what would be right."""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        line = ": ".join(part for part in (place, self.path, self.reason) if part)
        if len(line) > LONGEST_LINE:
            line = f"{line[: LONGEST_LINE - 1]}…"
        # A quoted key may hold line ends and a terminal's commands, and each problem has one line.
        return line if line.isprintable() else "".join(one if one.isprintable() else ascii(one)[1:-1] for one in line)


class PolicyError(MeshError):
    """The policy file cannot be used. Holds every problem found, at most MOST_PROBLEMS, in the order of the lines; `str()` has
    one a line. `problems` is read no further than that.
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
        self.args = ("\n".join(map(str, self.problems)),)  # for an operator, who reads all of them


@dataclass(frozen=True, slots=True)
class Fault:
    """A problem whose line is still to be looked up."""

    loc: Loc
    reason: str
    at_key: bool = False
    """Whether the key is wrong, rather than its value."""


def dotted(loc: Loc) -> str:
    """`tenants.acme.models[0]` for `("tenants", "acme", "models", 0)`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")
