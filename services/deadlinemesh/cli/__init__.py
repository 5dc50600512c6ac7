"""The command `dmesh`: reads arguments, and prints.

app.py       the commands
up.py        `dmesh up`
policy.py    `dmesh policy`
checking.py  the problems of a policy file
bench.py     `dmesh bench`: the benchmarks of a checkout
"""

from __future__ import annotations

import importlib.util
import io
import os
import sys

__all__ = ["main"]

# By import name; what the extra `server` brings.
_NEEDED = (
    *("typer", "rich", "yaml", "pydantic", "pydantic_settings", "jsonschema"),
    *("httpx", "openai", "starlette", "uvicorn", "grpc_reflection", "opentelemetry.sdk"),
)


def main() -> None:
    """The `dmesh` command. Says what to install, and exits with 2, where only the client was installed."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print('dmesh needs more than the client library: pip install "deadline-mesh[server]"', file=sys.stderr)
        print(f"missing: {', '.join(missing)}", file=sys.stderr)
        raise SystemExit(2)
    # gRPC would run handlers in the processes that tools start, and beside its running threads they sometimes abort these.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")  # before it is imported
    from deadlinemesh.cli.app import app

    # What models and tools say must not end the command where a character cannot be written.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    app(prog_name="dmesh")
