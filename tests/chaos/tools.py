"""Tools for the chaos: one that stops when it is told to, and those that do not. They tell who they are while they are at work."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from deadlinemesh.tool_runner import Progress, tool


@tool(idempotent=True)
async def wait(run: int, seconds: float, progress: Progress) -> str:
    """Take a while."""
    await progress(0.0, f"r{run}. ")
    await asyncio.sleep(seconds)
    return f"r{run}. "


@tool
async def cling(run: int, seconds: float, note: str, progress: Progress) -> str:
    """Swallow every cancellation for so many seconds from the first one on. Notes when it was told to go, and when it went."""
    await progress(0.0, f"r{run}. ")
    told_at = 0.0
    while not told_at or time.monotonic() < told_at + seconds:
        try:
            await asyncio.sleep(60.0 if not told_at else 0.01)
        except asyncio.CancelledError:
            told_at = told_at or time.monotonic()
    Path(note).write_text(f"{told_at} {time.monotonic()}")  # noqa: ASYNC240  # a few bytes, and nobody waits for it
    return f"r{run}. "


@tool
def spin(run: int, how: str, progress: Progress) -> str:
    """Never end, whatever one is told, and take others along. Tells the processes that will not end."""
    pids = [os.getpid()]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if how == "takes a shell along":
        shell = subprocess.Popen(
            ["sh", "-c", "trap '' TERM HUP; setsid sleep 1000 & echo $!; wait"], stdout=subprocess.PIPE
        )
        assert shell.stdout is not None
        pids += [shell.pid, int(shell.stdout.readline())]
    while True:
        with suppress(BaseException):
            progress(0.0, f"r{run}. pids " + " ".join(map(str, pids)))
            while how == "computes":
                pass
            time.sleep(60)
