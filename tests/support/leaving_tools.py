"""A tool that leaves something running, outside of what its call can see."""

from __future__ import annotations

import asyncio
import sys

from deadlinemesh.tool_runner.tool import tool

__all__ = ["leave_process"]

STUBBORN = "import signal; [signal.signal(number, signal.SIG_IGN) for number in (1, 2, 15)]; signal.pause()"


@tool
async def leave_process() -> str:
    """Leave a process running that holds this one's pipes."""
    left = await asyncio.create_subprocess_exec(sys.executable, "-c", STUBBORN, start_new_session=True)
    return f"left {left.pid}"
