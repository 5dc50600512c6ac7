"""A tool whose results are kept, for the mesh's tests."""

from __future__ import annotations

import asyncio

from deadlinemesh.deadline import current
from deadlinemesh.tool_runner import tool


@tool(idempotent=True, cache_for=300.0)
async def who_asks() -> str:
    """Tell who asks."""
    await asyncio.sleep(0.5)
    return f"{current().tenant_id} asks"
