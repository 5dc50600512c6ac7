"""A count of a resource's users, to close it after the last one."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType

__all__ = ["InUse"]


class InUse:
    """Counts the users of a resource. Each uses it for a `with` block."""

    def __init__(self) -> None:
        self._users = 0
        self._nobody = asyncio.Event()
        self._nobody.set()

    def __enter__(self) -> None:
        self._users += 1
        self._nobody.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._users -= 1
        if not self._users:
            self._nobody.set()

    async def ended(self, within: float | None = None) -> None:
        """Wait until there is no user, or for `within` seconds at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._nobody.wait()
