"""`dmesh bench`: finds and runs the benchmarks of a checkout, and prints the results."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

import deadlinemesh
from deadlinemesh.errors import WrongUsage, choices
from deadlinemesh.hosting.interpreter import spare_the_event_loop

__all__ = ["NoBenchmarks", "benchmark_names", "run_bench", "show"]


class NoBenchmarks(WrongUsage):
    """There are no benchmarks here, or none of that name. The message says how to correct this."""


def benchmark_names() -> list[str]:
    """The names of the benchmarks. Raises NoBenchmarks."""
    return list(_registry())


def run_bench(name: str, repetitions: int | None, seed: int) -> dict[str, Any]:
    """Run a benchmark. Raises NoBenchmarks."""
    benches = _registry()
    if name not in benches:
        raise NoBenchmarks(f"{name!r} is no benchmark: {choices(benches)}")
    for variable in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[variable]  # peers' clients would use a proxy even on this machine
    options = importlib.import_module("benchmarks.report").Options(repetitions=repetitions, seed=seed)
    spare_the_event_loop()  # the measuring process must not pause either
    measured = benches[name](options)
    if inspect.isawaitable(measured):

        async def wait() -> Any:
            return await measured

        measured = asyncio.run(wait())
    result: dict[str, Any] = measured
    return result


def show(result: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a result: one JSON object, or tables for people."""
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
        return
    console = Console(highlight=False)
    console.print(Text(f"{result['name']}, {result['repetitions']} repetitions", style="bold"))
    figures = Table.grid(padding=(0, 2))
    for name, value in _flat({k: v for k, v in result.items() if k not in ("name", "repetitions", "bars", "holds")}):
        figures.add_row(f"  {name}", Text(value, justify="right"))
    console.print(figures)
    bars = Table(box=None, padding=(0, 2))
    for title in ("promise", "measured", "limit", ""):
        bars.add_column(title, justify="right" if title in ("measured", "limit") else "left")
    for one in result["bars"]:
        verdict = Text("holds", style="green") if one["holds"] else Text("BROKEN", style="bold red")
        bars.add_row(str(one["what"]), f"{one['measured']:g}", f"{one['limit']:g}", verdict)
    console.print(bars)


def _registry() -> Mapping[str, Any]:
    root = Path(deadlinemesh.__file__).parents[2]
    if not (root / "benchmarks" / "registry.py").is_file():
        raise NoBenchmarks(
            "the benchmarks are not installed with the package: run this from a checkout (pip install -e '.[server]')"
        )
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    benches: Mapping[str, Any] = importlib.import_module("benchmarks.registry").BENCHES
    return benches


def _flat(figures: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in figures.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", f"{value:,g}" if isinstance(value, (int, float)) else str(value)))
    return rows
