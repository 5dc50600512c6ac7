"""Async tools that leave something behind, each in a way of its own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import Any

from deadlinemesh.tool_runner import Progress, tool

_DAEMON = """
import os, sys, time
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
print(os.getpid(), flush=True)
os.close(1)
time.sleep(1000)
"""

_FAMILY = "trap '' TERM HUP; sleep 1000 & echo $!; setsid sleep 1000 & echo $!; echo $$; wait"


HELD: list[Any] = []
"""Else asyncio kills a process when its object is collected."""


async def _started(how: str) -> list[int]:
    """Start processes that do not end by themselves; their ids."""
    if how == "session":
        child = await asyncio.create_subprocess_exec("sleep", "1000", start_new_session=True)
        HELD.append(child)
        return [child.pid]
    if how == "bare":
        child = await asyncio.create_subprocess_exec("sleep", "1000", start_new_session=True, env={})
        HELD.append(child)
        return [child.pid]
    if how == "family":
        shell = await asyncio.create_subprocess_shell(_FAMILY, stdout=subprocess.PIPE, start_new_session=True)
        HELD.append(shell)
        assert shell.stdout is not None
        return [int(await shell.stdout.readline()) for _ in range(3)]
    if how == "daemon":
        daemon = await asyncio.create_subprocess_exec(sys.executable, "-c", _DAEMON, stdout=subprocess.PIPE)
        assert daemon.stdout is not None
        return [int(await daemon.stdout.readline())]
    if how == "popen":
        HELD.append(subprocess.Popen(["sleep", "1000"], start_new_session=True))  # noqa: ASYNC220
        return [HELD[-1].pid]
    if how == "spawn":
        return [os.posix_spawnp("sleep", ["sleep", "1000"], {}, setsid=True)]  # noqa: ASYNC221
    assert how == "thread"
    popen = await asyncio.to_thread(subprocess.Popen, ["sleep", "1000"], start_new_session=True)
    return [popen.pid]


@tool
async def start(how: str) -> dict[str, Any]:
    """Come back, and leave processes running."""
    return {"pids": await _started(how)}


@tool
async def keep(how: str, progress: Progress) -> None:
    """Start processes, and never come back."""
    await progress(0.0, " ".join(map(str, await _started(how))))
    await asyncio.Event().wait()


@tool
async def tidy(progress: Progress) -> None:
    """Start a process, and end it when the call is cut."""
    child = await asyncio.create_subprocess_exec("sleep", "1000", start_new_session=True)
    await progress(0.0, str(child.pid))
    try:
        await asyncio.Event().wait()
    finally:
        child.kill()
        await child.wait()


@tool
async def swallow(progress: Progress) -> None:
    """Swallow every cancellation."""
    await progress(0.0, "swallows")
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            continue
