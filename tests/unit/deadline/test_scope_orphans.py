"""Work that does not end is cancelled again, reported once, and not waited for."""

from __future__ import annotations

import asyncio

import pytest
from tests.support.scopes import Hop, Stubborn, asleep
from tests.support.virtual import in_virtual_time, now

from deadlinemesh.deadline.scope import CANCEL_AGAIN_AFTER, REPORT_ORPHAN_AFTER
from deadlinemesh.errors import DeadlineSpent


@in_virtual_time
async def test_stubborn_work_is_cancelled_until_it_ends() -> None:
    hop = Hop()
    stubborn = Stubborn()
    asyncio.get_running_loop().call_later(1.1, setattr, stubborn, "let_go", True)
    with pytest.raises(DeadlineSpent):
        await hop.open(1.0).run(stubborn())
    assert stubborn.cancels == pytest.approx([1.0, 1.05, 1.1])
    assert hop.orphans == []


@in_virtual_time
async def test_stubborn_work_is_reported_once_with_its_place() -> None:
    hop = Hop()
    stubborn = Stubborn()
    scope = hop.open(1.0)
    asyncio.get_running_loop().call_later(9.0, setattr, stubborn, "let_go", True)
    with pytest.raises(DeadlineSpent):
        await scope.run(stubborn())
    (orphan,) = hop.orphans
    assert (orphan.context, orphan.hop) == (scope.context, "hop-a")
    assert orphan.age == pytest.approx(REPORT_ORPHAN_AFTER)
    assert " at asleep:" in orphan.task  # the position in the code
    assert now() == pytest.approx(9.0, abs=CANCEL_AGAIN_AFTER)
    assert len(stubborn.cancels) > 100


@in_virtual_time
async def test_on_overdue_is_called_once_for_stubborn_work() -> None:
    hop = Hop()
    stubborn = Stubborn()
    scope = hop.open(1.0)
    told: list[float] = []
    scope.on_overdue = lambda scope: told.append(now())
    asyncio.get_running_loop().call_later(3.0, setattr, stubborn, "let_go", True)
    with pytest.raises(DeadlineSpent):
        await scope.run(stubborn())
    assert told == [pytest.approx(1.0 + REPORT_ORPHAN_AFTER)]


@in_virtual_time
async def test_on_overdue_is_not_called_for_punctual_work() -> None:
    told: list[float] = []
    scope = Hop().open(1.0)
    scope.on_overdue = lambda scope: told.append(now())
    with pytest.raises(DeadlineSpent):
        await scope.run(asleep())
    await asyncio.sleep(1.0)
    assert told == []


@in_virtual_time
async def test_stubborn_children_are_reported_and_not_waited_for() -> None:
    hop = Hop()
    first, second = Stubborn(), Stubborn()

    async def work() -> int:
        asyncio.create_task(first(), name="first")  # noqa: RUF006
        asyncio.create_task(second(), name="second")  # noqa: RUF006
        await asyncio.sleep(1.0)
        return 42

    assert await hop.open().run(work()) == 42
    assert now() == pytest.approx(1.0 + REPORT_ORPHAN_AFTER)
    assert sorted(orphan.task.split()[0] for orphan in hop.orphans) == ["first", "second"]
    assert len(hop.scopes) == 1

    await asyncio.sleep(1.0)
    assert len(hop.orphans) == 2
    first.let_go = second.let_go = True
    await hop.scopes.emptied()
    assert now() == pytest.approx(2.0 + REPORT_ORPHAN_AFTER, abs=CANCEL_AGAIN_AFTER + 0.01)
    cancels = len(first.cancels)
    await asyncio.sleep(1.0)
    assert len(first.cancels) == cancels


@pytest.mark.parametrize("start", [0.0, 3.0, 1e6 + 0.1])
@in_virtual_time
async def test_orphan_is_reported_in_time_at_any_clock_reading(start: float) -> None:
    await asyncio.sleep(start)
    hop = Hop()
    stubborn = Stubborn()
    began = now()
    scope = hop.open(1.0)
    told: list[float] = []
    scope.on_overdue = lambda scope: told.append(now() - began)
    asyncio.get_running_loop().call_later(2.0, setattr, stubborn, "let_go", True)
    with pytest.raises(DeadlineSpent):
        await scope.run(stubborn())
    assert told == [pytest.approx(1.25)]


@in_virtual_time
async def test_drained_does_not_wait_for_orphans() -> None:
    hop = Hop()
    stubborn = Stubborn()
    caller = asyncio.create_task(hop.open(1.0).run(stubborn()))
    other = asyncio.create_task(hop.open(0.5).run(asleep()))
    await asyncio.sleep(0)
    await hop.scopes.drained()
    assert now() == pytest.approx(1.0 + REPORT_ORPHAN_AFTER, abs=CANCEL_AGAIN_AFTER)
    assert (len(hop.orphans), len(hop.scopes)) == (1, 1)
    stubborn.let_go = True
    await hop.scopes.emptied()
    await asyncio.gather(caller, other, return_exceptions=True)
