"""Look further than CI does, or play one scenario again: `python -m tests.simulation [SEED]`."""

from __future__ import annotations

import argparse
import random
import sys

from tests.simulation.explore import explore, replay


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("seed", nargs="?", type=_number, help="a scenario to play again, as a failure names it")
    parser.add_argument("--runs", type=int, default=10_000, help="how many runs to look at without a seed")
    parser.add_argument("--start", type=_number, help="which runs: the same number gives the same ones")
    chosen = parser.parse_args()
    if chosen.seed is not None:
        report = replay(chosen.seed)
    else:
        start = random.getrandbits(32) if chosen.start is None else chosen.start
        print(f"start {start}", flush=True)
        report = explore(start, chosen.runs)
    print(report)
    return 1 if report.violations else 0


def _number(text: str) -> int:
    number = int(text, 0)
    if number < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return number


if __name__ == "__main__":
    sys.exit(main())
