"""The attacker's process: plays one attack, or a mixture, against a service until it is terminated.

It says on standard output when it begins, and in the file `--tell` how many units it has sent.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import resource
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from benchmarks.hostile.attacker import Attacker, Call, Target
from benchmarks.hostile.attacks import ATTACKS
from benchmarks.hostile.world import FLUENT
from deadlinemesh.v1 import orchestrator_pb2

__all__: list[str] = []

TELL_EVERY_S = 0.25
_SERVICE = "/deadlinemesh.v1.OrchestratorService"


def _target(port: int, key: str) -> Target:
    run = orchestrator_pb2.RunRequest(prompt="Write 2000 words about deadlines", model=FLUENT)
    return Target(
        port,
        (("authorization", f"Bearer {key}"),),
        Call(f"{_SERVICE}/ListRuns", orchestrator_pb2.ListRunsRequest().SerializeToString()),
        Call(f"{_SERVICE}/Run", run.SerializeToString()),
    )


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("attack", choices=ATTACKS)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--key", default="none")
    parser.add_argument("--tell", type=Path, required=True)
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    target = _target(options.port, options.key)
    async with AsyncExitStack() as stack:
        played = [
            (attack, await stack.enter_async_context(Attacker(target, attack.per_s)))
            for attack in ATTACKS[options.attack]
        ]
        print(json.dumps({"attacking": options.attack}), flush=True)
        sys.stderr = io.StringIO()  # the service ends while it is still attacked
        attacking = asyncio.gather(*(attack.play(attacker) for attack, attacker in played), return_exceptions=True)
        while not attacking.done():
            options.tell.write_text(str(sum(attacker.sent for _, attacker in played)))
            await asyncio.wait({attacking}, timeout=TELL_EVERY_S)
        await asyncio.get_running_loop().create_future()  # what it holds it holds on to


if __name__ == "__main__":
    asyncio.run(main())
