"""`dmesh policy`: checks policy files and makes keys."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer

from deadlinemesh.hosting import policy_status
from deadlinemesh.hosting.policy_status import Told
from deadlinemesh.hosting.settings import CommandSettings
from deadlinemesh.identity.keys import hash_key, new_key
from deadlinemesh.local import state as states
from deadlinemesh.policy import Problem
from deadlinemesh.views.output import Exit, complain

__all__ = ["policy_app"]

policy_app = typer.Typer(
    help="Check policy files, make API keys, tell what is in force.", no_args_is_help=True, rich_markup_mode=None
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


@policy_app.command(epilog="Exit codes: 0 the policy is right; 2 it is not.")
def check(file: Annotated[Path, typer.Argument(help="The policy file.")], as_json: Json = False) -> None:
    """Check a policy file.

    Also checks that a tool-runner can load the policy's tools, so their modules are imported.
    Prints every problem as FILE:LINE: PATH: REASON. Warns of modules and environment variables that
    the policy names and this machine lacks.
    """
    from deadlinemesh.cli.checking import checked  # a slow import

    found = checked(file)
    if as_json:
        told = {"ok": False, "problems": _as_json(found.problems)} if found.problems else {"ok": True, **found.counts}
        print(json.dumps({**told, "warnings": _as_json(found.warnings)}, ensure_ascii=False))
    else:
        if not found.problems:
            print(f"{file}: OK: {_sentence(found.counts)}")
        for line in (*found.problems, *(f"warning: {warning}" for warning in found.warnings)):
            print(line, file=sys.stderr)
    if found.problems:
        raise typer.Exit(Exit.USAGE)


@policy_app.command("hash-key")
def hash_a_key(
    tenant: Annotated[str, typer.Option(help="Make a fresh key for this tenant instead of reading one.")] = "",
    as_json: Json = False,
) -> None:
    """Print the hash of an API key, as a policy file stores it.

    Reads the key from standard input.
    """
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


@policy_app.command(
    epilog="Exit codes: 0 every process has in force what its file says; 1 one has refused it; 2 there is nothing to ask."
)
def status(
    file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What a service wrote to DMESH_POLICY_STATUS_FILE.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the policy of each process of the mesh, since when, and why a newer one was refused.

    Shows the processes of `dmesh up`. For a service that was started alone, as in a container,
    reads the file that the service writes to DMESH_POLICY_STATUS_FILE.
    """
    found = policy_status.read_all(_status_files(file, CommandSettings()))
    if not found:
        complain("no process tells its policy: start `dmesh up`, or set DMESH_POLICY_STATUS_FILE as the service has it")
        raise typer.Exit(Exit.USAGE)
    refused = any(one.status.why for one in found)
    if as_json:
        told = [{"process": one.name, "pid": one.pid, "lives": one.lives, **asdict(one.status)} for one in found]
        print(json.dumps({"ok": not refused, "processes": told}, ensure_ascii=False))
    else:
        for one in found:
            print(_status_line(one))
            if one.status.why:
                print(f"    refused {one.status.refused} at {_at(one.status.refused_at)}: {one.status.why}")
    if refused:
        raise typer.Exit(Exit.FAILED)


def _status_files(file: Path | None, settings: CommandSettings) -> Sequence[Path]:
    if (named := file or settings.policy_status_file) is not None:
        return [named]
    state = states.read(settings.state_path)
    return [] if state is None else sorted(Path(state.policy_file).parent.glob("*.policy-status"))


def _status_line(told: Told) -> str:
    gone = "" if told.lives else " (the process is gone)"
    return f"{told.name:<24} {told.status.digest or 'embedded':<12} since {_at(told.status.since)}{gone}"


def _at(instant: float) -> str:
    return datetime.fromtimestamp(instant).astimezone().isoformat(" ", "seconds")


@policy_app.command()
def show() -> None:
    """Print the embedded policy, to copy and change."""
    print(resources.files("deadlinemesh.policy").joinpath("default.yaml").read_text("utf-8"), end="")


def _as_json(problems: Sequence[Problem]) -> list[dict[str, Any]]:
    return [{"file": one.file, "line": one.line, "path": one.path, "reason": one.reason} for one in problems]


def _sentence(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {what.replace('_', ' ').replace('http', 'HTTP')}" for what, count in counts.items())
