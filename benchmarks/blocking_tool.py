"""A tool that blocks: it runs in a worker process."""

from __future__ import annotations

import time

from benchmarks.isolation.peers import SERVICE_S
from deadlinemesh.tool_runner import tool

__all__ = ["hold"]


@tool
def hold() -> str:
    """Block for as long as one call of the isolation benchmark takes."""
    time.sleep(SERVICE_S)
    return "held"
