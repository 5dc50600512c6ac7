"""Reads a policy file into a `Policy`, or into a list of all its problems."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from pydantic import ValidationError

from deadlinemesh.policy.cross_checks import contradictions
from deadlinemesh.policy.environment import unset_variables
from deadlinemesh.policy.model import Policy
from deadlinemesh.policy.problems import MOST_PROBLEMS, Fault, PolicyError, Problem, dotted
from deadlinemesh.policy.pydantic_errors import faults_of
from deadlinemesh.policy.source import MAX_SIZE, read

__all__ = ["load", "located", "parse", "text_in", "unset"]


def load(path: Path) -> Policy:
    """The policy in the file at `path`. Raises PolicyError, also if the file cannot be read."""
    return parse(text_in(path), str(path))


def text_in(path: Path) -> str:
    """The text of the file.

    Raises PolicyError if it cannot be read, is no UTF-8, or is too large.
    """
    name = str(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_SIZE + 1)
        if len(raw) > MAX_SIZE:
            raise PolicyError([Problem(name, 0, "", "is larger than 1 MiB: no policy is")])
        return raw.decode("utf-8-sig")
    except OSError as error:
        raise PolicyError([Problem(name, 0, "", f"cannot be read: {error.strerror or error}")]) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise PolicyError([Problem(name, line, "", "is not UTF-8 text")]) from error


def unset(text: str, name: str, policy: Policy) -> tuple[Problem, ...]:
    """Problems of `policy` with environment variables that this process does not have.

    `text` is the policy's text, for the lines. `name` is the name of its file.
    """
    return located(text, name, ((dotted(one.loc), one.reason) for one in unset_variables(policy)))


def located(text: str, name: str, reasons: Iterable[tuple[str, str]]) -> tuple[Problem, ...]:
    """Problems with their lines in `text`, from pairs of a place and a reason.

    A place is written like the result of `dotted`. An unknown place gets line 0.
    """
    source = read(text, name)
    lines = {dotted(loc): source.line_of(loc) for loc in source.places}
    return tuple(Problem(name, lines.get(path, 0), path, reason) for path, reason in reasons)


def parse(text: str, name: str) -> Policy:
    """The policy in `text`.

    Raises PolicyError with all problems, with `name` as the file's name.
    """
    source = read(text, name)
    faults = list(islice(contradictions(source.data), MOST_PROBLEMS))
    # If pydantic refuses the same value, the contradiction is better: it names the valid choices.
    contradicted = {fault.loc for fault in faults}
    policy: Policy | None = None
    try:
        policy = Policy.model_validate(source.data)
    except ValidationError as error:
        faults += islice((fault for fault in faults_of(error) if fault.loc not in contradicted), MOST_PROBLEMS)

    def located(fault: Fault) -> Problem:
        return Problem(name, source.line_of(fault.loc, at_key=fault.at_key), dotted(fault.loc), fault.reason)

    problems = [*source.problems, *(located(fault) for fault in faults if fault.loc not in source.unreadable)]
    if policy is None or problems:
        raise PolicyError(problems)
    return policy
