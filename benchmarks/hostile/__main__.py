"""`python -m benchmarks.hostile`: the benchmark `hostile` for some of its attacks, or for a shorter time."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys

from benchmarks.hostile.attacks import ATTACKS
from benchmarks.hostile.bench import hostile
from benchmarks.report import Options


def main() -> int:
    """Measure; the exit code is that of `dmesh bench`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=ATTACKS, metavar="NAME", help="an attack; may be repeated")
    parser.add_argument("--seconds", type=float, help="of each attack")
    parser.add_argument("--repetitions", type=int)
    given = parser.parse_args()
    options = Options(given.repetitions, only=tuple(given.only or ()), seconds=given.seconds)
    told = asyncio.run(hostile(options))
    print(json.dumps(told, indent=1))
    return 0 if told["holds"] else 3


if __name__ == "__main__":
    sys.exit(main())
