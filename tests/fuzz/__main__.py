"""Fuzz every target, or some, for some seconds each: `python -m tests.fuzz --seconds 20 [TARGET ...]`.

A finding is kept in `.fuzz/TARGET/`, with the corpus. `--replay FILE TARGET` reads one input again.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.targets import NAMES, inputs_of, target_of

FOLDER = Path(".fuzz")
MOST_MB = 1024
"""Resident memory of one target, after which it counts as a finding."""
LONGEST_INPUT_S = 20
"""Seconds for one input, after which it counts as a finding. A busy machine takes one for what it does in a tenth."""
STARTS_WITHIN_S = 120
"""Seconds that importing a target and reading its corpus may take besides."""

_PROGRESS = re.compile(r"^#(\d+)\s.*?\bcov: (\d+) ft: (\d+)", re.MULTILINE)
_EXECUTIONS = re.compile(r"^stat::number_of_executed_units:\s*(\d+)", re.MULTILINE)
_MEMORY = re.compile(r"^stat::peak_rss_mb:\s*(\d+)", re.MULTILINE)
_FINDING = re.compile(r"Test unit written to (.+)$", re.MULTILINE)
_TRACEBACK = re.compile(r"^ === Uncaught Python exception: ===\n(.*?)(?=^==\d+==|\Z)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Report:
    """What fuzzing one target came to."""

    name: str
    executions: int
    edges: int
    features: int
    memory_mb: int
    findings: tuple[Path, ...]
    ended_well: bool
    output: str

    def __str__(self) -> str:
        found = ", ".join(map(str, self.findings)) or ("none" if self.ended_well else "it ended: see the output")
        return (
            f"{self.name:<13} {self.executions:>9} executions  {self.edges:>5} edges  {self.features:>6} features"
            f"  {self.memory_mb:>4} MB  findings: {found}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", choices=[*NAMES, []], metavar="TARGET", help=", ".join(NAMES))
    parser.add_argument("--seconds", type=int, default=20, help="for each target")
    parser.add_argument("--jobs", type=int, default=2, help="targets at a time")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="read this input alone")
    chosen = parser.parse_args()
    if chosen.replay is not None and not chosen.targets:
        parser.error("name the target that is to read the file: make fuzz TARGET=wire INPUT=FILE")
    if chosen.replay is not None:
        for name in chosen.targets:
            target_of(name)(chosen.replay.read_bytes())
        return 0
    reports = []
    with ThreadPoolExecutor(chosen.jobs) as pool:
        for report in pool.map(lambda name: fuzzed(name, chosen.seconds), chosen.targets or NAMES):
            print(report, flush=True)
            reports.append(report)
    failed = [report for report in reports if report.findings or not report.ended_well]
    for report in failed:
        print(f"\n{report.name}:\n{_told(report.output)}")
        for path in report.findings:
            print(f"  replay it: make fuzz TARGET={report.name} INPUT={path}")
    print(f"{sum(report.executions for report in reports)} executions, {sum(len(r.findings) for r in failed)} findings")
    return 1 if failed else 0


def fuzzed(name: str, seconds: int) -> Report:
    """Fuzz one target in a process of its own, from its seeds and from the corpus of earlier runs on."""
    folder = FOLDER / name
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for path in inputs_of(name, "seeds", "found"):
        (corpus / f"{path.parents[1].name}-{path.name}").write_bytes(path.read_bytes())
    bounds = (
        f"-max_total_time={seconds}",
        f"-rss_limit_mb={MOST_MB}",
        f"-timeout={LONGEST_INPUT_S}",
        f"-report_slow_units={LONGEST_INPUT_S}",
    )
    command = (sys.executable, "-m", "tests.fuzz.loop", name, *bounds)
    output, code = _run((*command, "-print_final_stats=1", f"-artifact_prefix={folder}/", str(corpus)), seconds)
    (folder / "output.txt").write_text(output)
    progress = _PROGRESS.findall(output)
    _, edges, features = progress[-1] if progress else (0, 0, 0)
    executions, memory = (found[1] if (found := form.search(output)) else 0 for form in (_EXECUTIONS, _MEMORY))
    findings = tuple(map(Path, _FINDING.findall(output)))
    return Report(name, int(executions), int(edges), int(features), int(memory), findings, code == 0, output)


def _run(command: Sequence[str], seconds: int) -> tuple[str, int]:
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds + STARTS_WITHIN_S,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        said = late.stdout or b""
        return f"{said.decode(errors='replace') if isinstance(said, bytes) else said}\nit did not end in time", 1
    return done.stdout, done.returncode


def _told(output: str) -> str:
    """What matters of libFuzzer's output: the traceback, or its end."""
    traceback = _TRACEBACK.search(output)
    return traceback[1] if traceback else output[-3000:]


if __name__ == "__main__":
    sys.exit(main())
