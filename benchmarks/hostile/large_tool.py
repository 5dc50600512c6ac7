"""A tool with a large result."""

from __future__ import annotations

from deadlinemesh.tool_runner import tool

__all__ = ["REPLY_BYTES", "report"]

REPLY_BYTES = 1_000_000


@tool(idempotent=True)
async def report() -> str:
    """Fetch the quarterly report."""
    return "x" * REPLY_BYTES
