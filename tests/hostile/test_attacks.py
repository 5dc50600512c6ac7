"""Whatever a peer sends, others are answered meanwhile, and the service drains in time with nothing left of it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from benchmarks.hostile.attacker import Attacker
from benchmarks.hostile.attacks import RAW, Attack
from tests.hostile.services import DRAIN_S, SERVICES, Served, serving

IN_TIME_S = 5.0
"""Seconds for a call that takes a millisecond, on a busy machine, and for an attack that takes a fifth of one."""
AFTER_DRAIN_S = 2.0
"""Seconds that a service may take after its drain time."""
GIVEN_UP_S = 10.0
"""Seconds after which a drain is taken not to end."""


def _attacks() -> Iterator[Any]:
    for attack in RAW:
        yield pytest.param(attack)


def _services() -> Iterator[Any]:
    """The one that strangers reach first, and the others, which take as long again each."""
    for service in SERVICES:
        yield pytest.param(service, marks=() if service == "orchestrator" else pytest.mark.long)


@pytest.mark.parametrize("service", list(_services()))
@pytest.mark.parametrize("attack", list(_attacks()), ids=lambda attack: attack.name)
async def test_costs_others_nothing(attack: Attack, service: str, tmp_path: Path) -> None:
    before = asyncio.all_tasks()
    async with serving(service, tmp_path) as served:
        async with Attacker(served.target, math.inf, attack.count) as attacker:
            await _answered_during(served, attack.play(attacker))
            assert attacker.is_spent
            async with asyncio.timeout(IN_TIME_S):
                await asyncio.gather(*(peer.taken() for peer in attacker.peers if peer.greets and peer.reads))
            assert await _tasks(served) - len(before) <= served.most_tasks
            await _drained(served)
            async with asyncio.timeout(IN_TIME_S):
                await asyncio.gather(*(peer.closed.wait() for peer in attacker.peers if peer.reads))
    await _nothing_left(before)


@pytest.mark.parametrize("service", list(_services()))
async def test_all_attacks_at_once_cost_no_more(service: str, tmp_path: Path) -> None:
    before = asyncio.all_tasks()
    async with serving(service, tmp_path) as served, AsyncExitStack() as stack:
        attackers = [
            (attack, await stack.enter_async_context(Attacker(served.target, math.inf, attack.count // 5)))
            for attack in RAW
        ]
        await _answered_during(served, asyncio.gather(*(attack.play(attacker) for attack, attacker in attackers)))
        assert await _tasks(served) - len(before) <= len(RAW) * served.most_tasks
        await _drained(served)
    await _nothing_left(before)


async def _answered_during(served: Served, attack: Awaitable[Any]) -> None:
    """Have others call as long as the attack goes on, and once more."""
    attacking = asyncio.ensure_future(attack)
    try:
        while not attacking.done():
            await served.answers(IN_TIME_S)
            await asyncio.wait({attacking}, timeout=0)
        attacking.result()
        await served.answers(IN_TIME_S)
    finally:
        attacking.cancel()


async def _tasks(served: Served) -> int:
    """How many tasks there are, once the service has taken up all that it was sent."""
    most = -1
    while (now := len(asyncio.all_tasks())) > most:
        most = now
        await served.answers(IN_TIME_S)
    return now


async def _drained(served: Served) -> None:
    began = time.monotonic()
    async with asyncio.timeout(GIVEN_UP_S):
        await served.server.drain()
    assert time.monotonic() - began <= DRAIN_S + AFTER_DRAIN_S
    assert len(served.server.interceptor.scopes) == 0


async def _nothing_left(before: set[asyncio.Task[Any]]) -> None:
    left = asyncio.all_tasks() - before
    if left:
        _, left = await asyncio.wait(left, timeout=IN_TIME_S)
    assert left == set()
