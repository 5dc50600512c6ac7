"""What is wrong with a policy file, and the error that carries all of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from deadlinemesh.errors import MeshError

__all__ = ["Fault", "Loc", "PolicyError", "Problem", "dotted"]

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
        return line.replace("\n", "\\n")  # a quoted key may hold one, and each problem has one line


class PolicyError(MeshError):
    """The policy file cannot be used. Holds every problem found, in the order of the lines; `str()` has one a line."""

    reason = "INVALID_POLICY"

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: problem.line))
        super().__init__("\n".join(map(str, self.problems)))


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
