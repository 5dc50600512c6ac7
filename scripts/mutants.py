"""Change the code in small ways, one at a time, and list the changes that no test notices.

    make mutants NUMBER=300 SEED=20261201

Each mutant is one change in `deadline`, `admission`, `transport` or `orchestrator`: a comparison, a
boolean, a constant, an arithmetic operator, a condition, or a statement left out. It runs in a copy of
the tree. The tests of its package run first, then those of the mesh in memory; the first failure kills
it. A mutant that survives both is printed as `file:line: change`. Exit code 1 if fewer than 93% are
killed.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from operator import setitem
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("deadline", "admission", "transport", "orchestrator")
GOAL = 0.93
"""Part of the mutants that tests must notice."""
TIME_LIMIT_S = 300.0
"""For the tests of one mutant. One that takes longer hangs, and is noticed."""

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
}


@dataclass(frozen=True)
class Mutant:
    """One change of one file."""

    path: Path
    line: int
    change: str
    source: str
    """The whole changed file."""

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.change}"


def sites_of(path: Path) -> int:
    """The number of mutants of a file."""
    return sum(1 for _ in _changes(ast.parse((ROOT / path).read_text("utf-8"))))


def mutant(path: Path, number: int) -> Mutant:
    """One mutant of a file, by its number."""
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    node, change, apply = list(_changes(tree))[number]
    apply()
    return Mutant(path, node.lineno, change, ast.unparse(ast.fix_missing_locations(tree)))


def _changes(tree: ast.Module) -> Iterator[tuple[ast.stmt | ast.expr, str, Callable[[], None]]]:
    # Constants of a module are tuned values: another one breaks no promise.
    tuned = {id(one) for node in tree.body if isinstance(node, (ast.Assign, ast.AnnAssign)) for one in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in tuned:
            continue
        match node:
            case ast.Compare(ops=[op]) if type(op) in _COMPARISONS:
                other = _COMPARISONS[type(op)]
                yield node, f"{_name(op)} becomes {other.__name__}", partial(setattr, node, "ops", [other()])
            case ast.BinOp(op=op) if type(op) in _OPERATORS:
                operator = _OPERATORS[type(op)]
                yield node, f"{_name(op)} becomes {operator.__name__}", partial(setattr, node, "op", operator())
            case ast.BoolOp(op=op):
                boolean = ast.Or if isinstance(op, ast.And) else ast.And
                yield node, f"{_name(op)} becomes {boolean.__name__}", partial(setattr, node, "op", boolean())
            case ast.UnaryOp(op=ast.Not()):
                yield node, "`not` is left out", partial(setattr, node, "operand", ast.UnaryOp(ast.Not(), node.operand))
            case ast.If() | ast.While() | ast.IfExp():
                negated = ast.UnaryOp(ast.Not(), node.test)
                yield node, "the condition is negated", partial(setattr, node, "test", negated)
            case ast.Constant(value=bool() as value):
                yield node, f"{value} becomes {not value}", partial(setattr, node, "value", not value)
            case ast.Constant(value=int() | float() as value):
                yield node, f"{value} becomes {value + 1}", partial(setattr, node, "value", value + 1)
            case _:
                pass
        for field in ("body", "orelse", "finalbody"):
            statements = getattr(node, field, None)
            for index, one in enumerate(statements if isinstance(statements, list) else ()):
                if isinstance(one, ast.AugAssign) or (isinstance(one, ast.Expr) and isinstance(one.value, ast.Call)):
                    change = f"`{ast.unparse(one)[:60]}` is left out"
                    yield one, change, partial(setitem, statements, index, ast.Pass())


def _name(op: ast.AST) -> str:
    return type(op).__name__


def survives(one: Mutant, tree: Path) -> bool:
    """True if no test notices `one` in `tree`, a copy of the project, which is left as it was."""
    target, original = tree / one.path, (ROOT / one.path).read_text("utf-8")
    target.write_text(one.source, "utf-8")
    package = one.path.parts[2]
    try:
        return all(_pass(tree, folder) for folder in (f"tests/unit/{package}", "tests/mesh"))
    finally:
        target.write_text(original, "utf-8")


def _pass(tree: Path, folder: str) -> bool:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tree / "services"), str(tree)))}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", folder]
    try:
        ran = subprocess.run(command, cwd=tree, env=environment, capture_output=True, timeout=TIME_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return False
    return ran.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    chosen = parser.parse_args()
    files = [
        path.relative_to(ROOT)
        for package in PACKAGES
        for path in sorted((ROOT / "services" / "deadlinemesh" / package).rglob("*.py"))
    ]
    sites = [(path, number) for path in files for number in range(sites_of(path))]
    sample = random.Random(chosen.seed).sample(sites, min(chosen.number, len(sites)))
    survivors: list[Mutant] = []
    with tempfile.TemporaryDirectory() as folder:
        trees: SimpleQueue[Path] = SimpleQueue()
        for number in range(chosen.workers):
            copied = Path(folder) / str(number)
            for part in ("services", "tests", "benchmarks", "pyproject.toml"):
                source = ROOT / part
                (shutil.copytree if source.is_dir() else _copy)(source, copied / part)
            trees.put(copied)

        def judge(site: tuple[Path, int]) -> None:
            one, tree = mutant(*site), trees.get()
            try:
                if survives(one, tree):
                    survivors.append(one)
                    print(one, flush=True)
            finally:
                trees.put(tree)

        with ThreadPoolExecutor(chosen.workers) as pool:
            list(pool.map(judge, sample))
    killed = 1 - len(survivors) / len(sample)
    print(f"{len(sample)} of {len(sites)} mutants, seed {chosen.seed}: {killed:.1%} killed, {len(survivors)} survive")
    return 0 if killed >= GOAL else 1


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


if __name__ == "__main__":
    sys.exit(main())
