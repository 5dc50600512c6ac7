"""Child processes that print one JSON line when they are ready, and end with their parent."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from deadlinemesh.hosting.event_loop import event_loop
from deadlinemesh.hosting.interpreter import keep_memory_together

__all__ = ["cores", "run_as_service", "started", "stay_on"]

_ROOT = Path(__file__).resolve().parent.parent


@asynccontextmanager
async def started(module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> AsyncIterator[Any]:
    """Run `python -m module arguments` for the block; gives what its ready line says, and its `pid`."""
    path = os.pathsep.join(filter(None, [str(_ROOT), str(_ROOT / "services"), os.environ.get("PYTHONPATH")]))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *arguments),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path, **(environment or {})},
    )
    assert process.stdout is not None
    try:
        line = await process.stdout.readline()
        if not line:
            raise RuntimeError(f"{module} ended before it was ready, with exit code {await process.wait()}")
        yield {**json.loads(line), "pid": process.pid}
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(10):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


def cores() -> list[int]:
    """The processor cores that this process may use, where the system says so and lets a process choose; else none."""
    return sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []


def stay_on(*chosen: int) -> None:
    """Keep this process, and those it starts, on these cores from now on."""
    if sys.platform == "linux":
        os.sched_setaffinity(0, chosen)


def run_as_service(work: Coroutine[Any, Any, None]) -> None:
    """Run `work` in a process set up as `dmesh serve` sets one up, but for `spare_the_event_loop`, once all is loaded."""
    keep_memory_together()
    with asyncio.Runner(loop_factory=event_loop) as runner:
        runner.run(work)
