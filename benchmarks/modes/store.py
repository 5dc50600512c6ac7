"""A tool-runner as `dmesh serve tool-runner` runs it, but with a store of results that is slow to write for tenant B.

The store cannot be named in a policy file, so this process hands it to the service's own `build`. Each write is written down: whose
it is, on whose account it ran and under which deadline, and when it ended.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from functools import partial
from pathlib import Path

from deadlinemesh.deadline import current
from deadlinemesh.hosting.serve import serve
from deadlinemesh.hosting.settings import HopSettings
from deadlinemesh.tool_runner import servicer
from deadlinemesh.tool_runner.cache import CacheKey

__all__ = ["WRITES_FILE", "WRITE_S"]

WRITES_FILE = "BENCH_WRITES_FILE"
WRITE_S = {"a": 0.005, "b": 3.0}
"""What a write takes, by its owner."""


class SlowStore:
    """Keeps nothing, so that every call runs its tool."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)

    async def get(self, key: CacheKey) -> str | None:
        return None

    async def put(self, key: CacheKey, content: str, seconds: float) -> None:
        began, context = time.monotonic(), current()
        try:
            await asyncio.sleep(WRITE_S[key.tenant_id])
        finally:
            wrote = {
                "owner": key.tenant_id,
                "charged": current().tenant_id,
                "began": began,
                "ended": time.monotonic(),
                "deadline_at": context.absolute_deadline,
            }
            self._file.write(json.dumps(wrote) + "\n")


if __name__ == "__main__":
    servicer.build = partial(servicer.build, cache=SlowStore(Path(os.environ[WRITES_FILE])))
    serve("tool-runner", HopSettings(), announce=True)
