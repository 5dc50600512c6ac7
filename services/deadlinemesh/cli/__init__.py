"""The `dmesh` command: reads arguments and prints results.

app.py       the commands and their options
up.py        `dmesh up`
policy.py    `dmesh policy`
checking.py  finds the problems of a policy file
bench.py     `dmesh bench`: runs the benchmarks of a checkout
"""

from __future__ import annotations

import importlib.util
import io
import os
import sys

__all__ = ["main"]

# Packages of the extra `server`, by import name.
_NEEDED = (
    *("typer", "rich", "yaml", "pydantic", "pydantic_settings", "jsonschema"),
    *("httpx", "openai", "starlette", "uvicorn", "grpc_reflection", "opentelemetry.sdk"),
)


def main() -> None:
    """Run the `dmesh` command.

    If only the client library is installed, it says how to install the rest and exits with 2.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print('dmesh needs more than the client library: pip install "deadline-mesh[server]"', file=sys.stderr)
        print(f"missing: {', '.join(missing)}", file=sys.stderr)
        raise SystemExit(2)
    # Otherwise gRPC runs its fork handlers in processes that tools start. While gRPC's threads
    # run, these handlers sometimes abort such a process.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")  # before gRPC is imported
    from deadlinemesh.cli.app import app

    # A character that the terminal cannot show must not end the command. Models and tools may
    # send any.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    app(prog_name="dmesh")
