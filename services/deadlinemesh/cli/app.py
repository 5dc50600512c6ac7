"""The commands of `dmesh` with their names and options. The modules beside implement them."""

from __future__ import annotations

import asyncio
import json
import math
import re
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console

from deadlinemesh.cli.policy import policy_app
from deadlinemesh.errors import InvalidRequest, WrongUsage, choices
from deadlinemesh.hosting.settings import CommandSettings, HopSettings
from deadlinemesh.policy import PolicyError
from deadlinemesh.policy.model import parse_duration
from deadlinemesh.views.output import EXIT_CODES, Exit, complain
from deadlinemesh.vocabulary.hops import PORTS

__all__ = ["app"]

app = typer.Typer(
    name="dmesh",
    help="Runs AI agents for many tenants, each inside one exact deadline.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(policy_app, name="policy")


def _named(metavar: str, what: str) -> Any:
    return typer.Option(metavar=metavar, help=what)


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


@app.command(epilog="Exit codes: 0 stopped by a signal; 1 a service could not be kept up; 2 wrong options or policy.")
def up(
    policy: Annotated[
        Path | None, _named("FILE", "The policy, also as it changes; its keys are replaced by fresh ones.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where clients go; 0 takes a free one.")] = 50051,
    llm: Annotated[str, _named("KIND", "The default model: scripted, local or openai.")] = "scripted",
    model: Annotated[str, _named("NAME", "For --llm openai: the provider's name of it.")] = "gpt-4o-mini",
    traces: Annotated[str, _named("WHERE", "Where spans go: off, file:PATH or otlp.")] = "off",
    demo_world: Annotated[bool, typer.Option(help="Serve the upstreams of the embedded policy's HTTP tools.")] = True,
    seed: Annotated[int, _named("N", "Of the scripted models and the demo world.")] = 0,
    as_json: Json = False,
) -> None:
    """Start a mesh on this machine, until Ctrl-C.

    Each service is a separate process, and listens on the loopback address only. `dmesh run` finds
    the mesh by itself.
    """
    from deadlinemesh.cli.up import up as start
    from deadlinemesh.local.machine import UpOptions

    if llm not in ("scripted", "local", "openai"):
        _wrong(f"--llm {llm!r} is not one of scripted, local, openai")
    if not re.fullmatch("off|otlp|file:.+", traces):
        _wrong(f"--traces {traces!r} is not one of off, file:PATH, otlp")
    options = UpOptions(None, port, llm, model, traces, demo_world, seed)  # type: ignore[arg-type]  # checked above
    _exit(lambda: start(policy, options, CommandSettings(), as_json=as_json))


@app.command(epilog="Settings are variables: DMESH_LISTEN, DMESH_POLICY_FILE, DMESH_MESH_TOKEN_FILE and so on.")
def serve(
    service: Annotated[str, typer.Argument(help="orchestrator, llm-proxy, tool-runner or edge", metavar="SERVICE")],
    announce: Annotated[bool, typer.Option("--announce", hidden=True)] = False,
) -> None:
    """Run one service, as containers do.

    It serves until SIGTERM or SIGINT and then drains. A second signal ends it at once.
    """
    if service not in PORTS:
        _wrong(f"{service!r} is no service: {choices(PORTS)}")
    # A container's first process receives only signals that it has handlers for. The imports take
    # a while, so this handler comes first.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    from deadlinemesh.hosting.serve import serve as run_service

    try:
        run_service(service, HopSettings(), announce=announce)
    except ValidationError as error:
        _wrong(*map(_setting, error.errors()))
    except PolicyError as error:
        _wrong(*map(str, error.problems))
    except InvalidRequest as error:
        _wrong(*(f"{one.field}: {one.description}" for one in error.violations))
    except (ValueError, OSError) as error:
        _wrong(str(error))


@app.command(epilog=EXIT_CODES)
def run(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the agent should do.")],
    tenant: Annotated[str, _named("NAME", "Whose run it is, of the mesh of `dmesh up`. [default: its first]")] = "",
    deadline: Annotated[str, _named("DURATION", "For the whole run: 500ms, 20s, 2m; 0: the tier's.")] = "20s",
    model: Annotated[str, _named("NAME", "The model. [default: the tenant's]")] = "",
    tool: Annotated[list[str] | None, _named("NAME", "A tool it may use; repeatable. [default: all]")] = None,
    request_id: Annotated[str, _named("ID", "While a run with this id is known, attach to it.")] = "",
    address: Annotated[
        str, _named("HOST:PORT", "The orchestrator; also DMESH_ADDR. [default: that of `dmesh up`]")
    ] = "",
    key: Annotated[str, _named("KEY", "The API key; better DMESH_API_KEY, which no process list shows.")] = "",
    plaintext: Annotated[
        bool | None, typer.Option("--plaintext/--tls", help="[default: plain text to this machine, TLS elsewhere]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run an agent, watch it, and see where its time went."""
    from deadlinemesh.views.run import NoMesh, Order, find_mesh
    from deadlinemesh.views.run import run as start

    try:
        order = Order(prompt, _seconds(deadline), model, tuple(tool or ()), request_id)
        target = find_mesh(CommandSettings(), tenant, address, key, plaintext)
    except (NoMesh, ValueError) as error:
        _wrong(str(error))
    _exit(lambda: start(target, order, as_json=as_json, console=Console(highlight=False)))


@app.command(epilog="Exit codes: 0 every run was answered inside its budget; 1 one was not.")
def demo(
    seed: Annotated[int, _named("N", "Other answers and other latencies.")] = 0,
    save: Annotated[Path | None, _named("FILE.svg", "Save the picture of both acts.")] = None,
    as_json: Json = False,
) -> None:
    """Play an incident of three tenants, naive and meshed.

    B's provider turns slow while A and C share the pool with it. Shows how much of each budget went
    into waiting for another tenant, and where time went. Needs no key and no network, and takes
    about half a minute.
    """
    from deadlinemesh.demo.play import demo as play

    _exit(lambda: play(seed, as_json=as_json, save=save))


@app.command(epilog="Exit codes: 0 every promise holds; 2 no such benchmark; 3 a promise is broken.")
def bench(
    name: Annotated[str, typer.Argument(help="The benchmark; see --list.", metavar="NAME")] = "",
    listed: Annotated[bool, typer.Option("--list", help="List the benchmarks.")] = False,
    repetitions: Annotated[int | None, typer.Option(min=1, metavar="N", help="[default: the benchmark's own]")] = None,
    seed: Annotated[int, _named("N", "Of what it draws.")] = 1,
    as_json: Json = False,
) -> None:
    """Measure the promises of the mesh, beside plain grpc.aio. Needs a checkout."""
    from deadlinemesh.cli.bench import NoBenchmarks, benchmark_names, run_bench, show

    try:
        if listed:
            names = benchmark_names()
            print(json.dumps(names) if as_json else "\n".join(names))
            return
        if not name:
            _wrong(f"name a benchmark: {choices(benchmark_names())}")
        result = run_bench(name, repetitions, seed)
    except NoBenchmarks as error:
        _wrong(str(error))
    show(result, as_json=as_json)
    raise typer.Exit(Exit.ANSWERED if result["holds"] else Exit.REFUSED)


def _exit(work: Callable[[], Coroutine[Any, Any, Exit]]) -> NoReturn:
    """Run a command to its exit code. Ctrl-C cancels it, so that it can close its resources."""
    try:
        code = asyncio.run(work())
    except KeyboardInterrupt:
        print("\ncancelled", file=sys.stderr)
        code = Exit.CANCELLED
    except PolicyError as error:
        _wrong(*map(str, error.problems))
    except WrongUsage as error:
        _wrong(str(error))
    raise typer.Exit(code)


def _seconds(text: str) -> float | None:
    """Parse a deadline as typed; None for 0.

    Raises ValueError naming the valid forms.
    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = parse_duration(text)
    if seconds < 0 or not math.isfinite(seconds):
        raise ValueError(f"--deadline {text}: write 500ms, 20s or 2m; 0 leaves it to the tenant's tier")
    return seconds or None


def _setting(error: Any) -> str:
    field = ".".join(str(part) for part in error["loc"])
    variable = f"DMESH_{field.upper()}: " if field else ""
    return f"{variable}{error['msg'].removeprefix('Value error, ')}"


def _wrong(*problems: str) -> NoReturn:
    complain(*problems)
    raise typer.Exit(Exit.USAGE)
