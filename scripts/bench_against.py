"""Run a benchmark in this tree and in an earlier revision, in turns, and print the ratios.

    make bench-against REV=HEAD~5 BENCH=overhead PAIRS=5

The revision is checked out into a temporary folder and runs with this environment's packages. Figures
are medians over the pairs; `ratio` is this tree's figure divided by the revision's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def figures_of(result: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a benchmark's result by their dotted names, without its bars."""
    for key, value in result.items():
        if isinstance(value, Mapping):
            yield from figures_of(value, f"{prefix}{key}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and key not in ("repetitions", "seed"):
            yield f"{prefix}{key}", float(value)


def measured(tree: Path, bench: str, options: list[str]) -> dict[str, float]:
    """One run of the benchmark in `tree`. Raises SystemExit if it prints no result."""
    paths = [str(tree / "services"), str(tree)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "deadlinemesh.cli", "bench", bench, "--json", *options]
    ran = subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    try:
        return dict(figures_of(json.loads(ran.stdout.splitlines()[-1])))
    except (IndexError, ValueError):
        raise SystemExit(f"{bench} printed no result in {tree} (exit code {ran.returncode})") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rev", help="the earlier revision")
    parser.add_argument("bench", help="the benchmark's name")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--repetitions", type=int, help="of the benchmark in each run")
    chosen = parser.parse_args()
    options = [] if chosen.repetitions is None else ["--repetitions", str(chosen.repetitions)]
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(before), chosen.rev], check=True)
        try:
            for number in range(chosen.pairs):
                trees = (before, ROOT) if number % 2 else (ROOT, before)
                results = {tree: measured(tree, chosen.bench, options) for tree in trees}
                for name in results[ROOT].keys() & results[before].keys():
                    found.setdefault(name, []).append((results[before][name], results[ROOT][name]))
                print(f"pair {number + 1} of {chosen.pairs}", file=sys.stderr)
        finally:
            subprocess.run([*git, "remove", "--force", str(before)], check=True)
    print(f"{'figure':60} {'before':>12} {'now':>12} {'ratio':>7}")
    for name, pairs in sorted(found.items()):
        was, now = (median(one) for one in zip(*pairs, strict=True))
        ratio = f"{now / was:7.3f}" if was else "      -"
        print(f"{name:60} {was:12.4g} {now:12.4g} {ratio}")


if __name__ == "__main__":
    main()
