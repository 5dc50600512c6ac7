"""Scopes of one hop in virtual time, and work for them."""

from __future__ import annotations

import asyncio

from tests.support.virtual import now, with_seconds

from deadlinemesh.deadline import Orphan, Scope, Scopes

__all__ = ["Hop", "Stubborn", "answer", "asleep"]


class Hop:
    """The scopes of one hop, and the reported orphans."""

    def __init__(self) -> None:
        self.orphans: list[Orphan] = []
        self.scopes = Scopes("hop-a", self.orphans.append)

    def open(self, seconds: float = 10.0) -> Scope:
        return self.scopes.open(with_seconds(seconds))


class Stubborn:
    """Work that swallows each cancellation until `let_go` is set."""

    def __init__(self) -> None:
        self.cancels: list[float] = []
        self.let_go = False

    async def __call__(self) -> None:
        while not self.let_go:
            try:
                await asleep()
            except asyncio.CancelledError:
                self.cancels.append(now())


async def asleep() -> None:
    await asyncio.get_running_loop().create_future()


async def answer() -> int:
    return 42
