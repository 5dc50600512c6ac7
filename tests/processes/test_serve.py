"""`dmesh serve`: how one service ends."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest
from tests.chaos.processes import Service
from tests.support.up import GUARD

pytestmark = pytest.mark.processes


async def test_however_often_it_is_told_to_end_it_ends_well(tmp_path: Path) -> None:
    own = {name: value for name, value in os.environ.items() if not name.startswith("DMESH_")}
    service = Service("llm-proxy", tmp_path, own | {"DMESH_LISTEN": "127.0.0.1:0", "DMESH_MESH_TOKEN": "t"})
    await service.start()
    ended = asyncio.ensure_future(service.life.process.wait())
    async with asyncio.timeout(GUARD):
        while not ended.done():
            with suppress(ProcessLookupError):
                os.kill(service.life.process.pid, signal.SIGTERM)  # `terminate` may reap it, and keep its exit code
            await asyncio.wait({ended}, timeout=0.001)
    assert ended.result() == 0, service.log
    assert "has drained" in service.log
