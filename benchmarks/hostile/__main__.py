"""`python -m benchmarks.hostile`: the benchmark `hostile` for some of its attacks, or for a shorter time."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys

from benchmarks.hostile.attacks import ATTACKS
from benchmarks.hostile.bench import ATTACK_S, measured


def main() -> int:
    """Measure; the exit code is that of `dmesh bench`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=ATTACKS, metavar="NAME", help="an attack; may be repeated")
    parser.add_argument("--seconds", type=float, default=ATTACK_S, help="of each attack")
    parser.add_argument("--repetitions", type=int, default=1)
    options = parser.parse_args()
    told = asyncio.run(measured(options.only or list(ATTACKS), options.seconds, options.repetitions))
    print(json.dumps(told, indent=1))
    return 0 if told["holds"] else 3


if __name__ == "__main__":
    sys.exit(main())
