"""dmesh: starts a mesh, runs agents on it, shows where their time went.

app.py          the commands, and nothing else
settings.py     what is read from the environment
hops.py         puts each service together
serve.py        one service in this process
interpreter.py  its interpreter, set up so that it does not hold deadlines up itself
tied.py         a module as a process that ends with whoever started it
supervisor.py   several such processes: ready, restarted, drained
machine.py      the mesh on one machine, made of those
folder.py       its folder, cleared away even if it was killed
up.py           `dmesh up`
state.py        where `dmesh up` tells `dmesh run` what it started
running.py      `dmesh run`
live.py         what a run shows while it runs
waterfall.py    where its time went: events to rows to text
demo.py         three tenants on a Tuesday afternoon, first naive and then meshed
demo_scenes.py  who asks for what, and what turns slow
demo_naive.py   the platform as it is commonly written
demo_lanes.py   whose time went where, as a lane for each run
bench.py        finds and reports the benchmarks of a checkout
policy_commands.py  `dmesh policy`
checking.py     what is wrong with a policy file
output.py       exit codes, JSON, errors as people read them
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
