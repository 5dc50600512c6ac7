"""`dmesh policy`: checks policy files and makes keys."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer

from deadlinemesh.cli.output import Exit, complain
from deadlinemesh.policy import Policy, PolicyError, Problem, hash_key, load, new_key, unset

__all__ = ["policy_app"]

policy_app = typer.Typer(help="Check policy files, make API keys.", no_args_is_help=True, rich_markup_mode=None)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


@policy_app.command(epilog="Exit codes: 0 the policy is right; 2 it is not.")
def check(file: Annotated[Path, typer.Argument(help="The policy file.")], as_json: Json = False) -> None:
    """Check a policy file. Prints every problem as FILE:LINE: PATH: REASON, and warns of environment variables that it names and
    that are not set here."""
    try:
        policy = load(file)
    except PolicyError as error:
        if as_json:
            print(json.dumps({"ok": False, "problems": _as_json(error.problems)}, ensure_ascii=False))
        else:
            for problem in error.problems:
                print(problem, file=sys.stderr)
        raise typer.Exit(Exit.USAGE) from None
    warnings = unset(file, policy)
    if as_json:
        print(json.dumps({"ok": True, **_counts(policy), "warnings": _as_json(warnings)}, ensure_ascii=False))
        return
    print(f"{file}: OK: {_sentence(policy)}")
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


@policy_app.command("hash-key")
def hash_a_key(
    tenant: Annotated[str, typer.Option(help="Make a fresh key for this tenant instead of reading one.")] = "",
    as_json: Json = False,
) -> None:
    """Print the hash of an API key, as a policy file stores it. Reads the key from standard input."""
    if not tenant and sys.stdin.isatty():
        print("the key to hash (--tenant NAME makes one): ", end="", file=sys.stderr, flush=True)
    key = new_key(tenant) if tenant else sys.stdin.readline().strip()
    if not key:
        complain("there is no key: write it to standard input, or make one with --tenant NAME")
        raise typer.Exit(Exit.USAGE)
    hashed = hash_key(key)
    if as_json:
        print(json.dumps({**({"api_key": key} if tenant else {}), "hash": hashed}))
        return
    if tenant:
        print(f"key   {key}\nhash  {hashed}\n")
        print(f"Give the key to {tenant}, and put the hash under tenants.{tenant}.api_keys.")
    else:
        print(hashed)


@policy_app.command()
def show() -> None:
    """Print the embedded policy: the one to copy and change."""
    print(resources.files("deadlinemesh.policy").joinpath("default.yaml").read_text("utf-8"), end="")


def _as_json(problems: Sequence[Problem]) -> list[dict[str, Any]]:
    return [{"file": one.file, "line": one.line, "path": one.path, "reason": one.reason} for one in problems]


def _counts(policy: Policy) -> dict[str, int]:
    return {
        "tiers": len(policy.tiers),
        "tenants": len(policy.tenants),
        "models": len(policy.models),
        "http_tools": len(policy.tools.http),
        "tool_modules": len(policy.tools.modules),
    }


def _sentence(policy: Policy) -> str:
    return ", ".join(
        f"{count} {what.replace('_', ' ').replace('http', 'HTTP')}" for what, count in _counts(policy).items()
    )
