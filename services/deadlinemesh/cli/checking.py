"""Finds the problems of a policy file, including those that a tool-runner would refuse."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

from deadlinemesh.errors import InvalidRequest, Violation
from deadlinemesh.policy import Policy, PolicyError, Problem, located, parse, text_in, unset
from deadlinemesh.tool_runner.registry import NotHere, Registry

__all__ = ["Checked", "checked"]


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of checking a policy file."""

    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    """Modules and variables that the file names and this machine lacks. The services may
    have them.
    """
    counts: Mapping[str, int] = field(default_factory=dict)
    """Number of tiers, tenants and so on; empty if the file cannot be parsed."""


def checked(file: Path) -> Checked:
    """Check the policy in `file`. This imports its tool modules."""
    name = str(file)
    try:
        text = text_in(file)  # read once: a pipe gives it only once, and a file may be replaced
        policy = parse(text, name)
    except PolicyError as error:
        return Checked(error.problems)
    with redirect_stdout(sys.stderr):  # modules may print at import
        refused = asyncio.run(_refused(policy))
    wrong = [(one.field, one.description) for one in refused if not isinstance(one, NotHere)]
    not_here = [(one.field, f"{one.description}: {_NOT_HERE}") for one in refused if isinstance(one, NotHere)]
    warnings = (*unset(text, name, policy), *located(text, name, not_here))
    return Checked(located(text, name, wrong), warnings, _counts(policy))


_NOT_HERE = "a tool-runner without it does not start, and names of tools are not checked here"


async def _refused(policy: Policy) -> Sequence[Violation]:
    """The reasons for a tool-runner to refuse `policy`, if its variables were set."""
    named = (variable for tool in policy.tools.http.values() for variable in tool.headers_env.values())
    try:
        registry = Registry.from_policy(policy, environ=dict.fromkeys(named, "set"))
    except InvalidRequest as error:
        return error.violations
    await registry.aclose()
    return ()


def _counts(policy: Policy) -> dict[str, int]:
    return {
        "tiers": len(policy.tiers),
        "tenants": len(policy.tenants),
        "models": len(policy.models),
        "http_tools": len(policy.tools.http),
        "tool_modules": len(policy.tools.modules),
    }
