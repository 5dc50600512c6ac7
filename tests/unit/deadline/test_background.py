"""Background work outlives its caller, with the same owner and its own deadline."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from tests.support.virtual import in_virtual_time, now, with_seconds

from deadlinemesh.deadline import Background, BackgroundTask, Scopes, current, entered
from deadlinemesh.deadline.scope import current_scope
from deadlinemesh.errors import Cause, DeadlineSpent, Draining, NoDeadline


async def asleep() -> None:
    await asyncio.get_running_loop().create_future()


async def call(scopes: Scopes, work: Callable[[], Coroutine[Any, Any, Any]], seconds: float = 1.0) -> Any:
    """Serve one call whose handler is `work`."""
    return await scopes.open(with_seconds(seconds)).run(work())


@in_virtual_time
async def test_spawn_without_a_context_raises() -> None:
    scopes = Scopes("hop-a")
    with pytest.raises(NoDeadline):
        Background(scopes).spawn(asleep, until=99.0, name="cache write")
    assert len(scopes) == 0


@in_virtual_time
async def test_background_work_outlives_its_scope() -> None:
    scopes = Scopes("hop-a")
    background = Background(scopes)
    done: list[float] = []

    async def cache_write() -> None:
        await asyncio.sleep(3.0)
        done.append(now())

    async def handler() -> BackgroundTask[None]:
        return background.spawn(cache_write, until=5.0, name="cache write")

    await call(scopes, handler)
    assert (now(), len(scopes)) == (0.0, 1)
    await scopes.emptied()
    assert done == [3.0]


@in_virtual_time
async def test_background_work_outlives_a_cut_caller() -> None:
    scopes = Scopes("hop-a")
    background = Background(scopes)
    done: list[float] = []

    async def cache_write() -> None:
        await asyncio.sleep(3.0)
        done.append(now())

    async def handler() -> None:
        background.spawn(cache_write, until=5.0, name="cache write")
        await asleep()

    with pytest.raises(DeadlineSpent):
        await call(scopes, handler)
    await scopes.emptied()
    assert done == [3.0]


@in_virtual_time
async def test_background_work_has_its_owner_and_its_own_deadline() -> None:
    scopes = Scopes("hop-a")

    async def work() -> tuple[str, str, float, float]:
        context = current()
        return context.tenant_id, context.run_id, context.granted, context.remaining

    with entered(with_seconds(1.0, tenant_id="bolt", run_id="run-7")):
        await asyncio.sleep(0.5)
        task = Background(scopes).spawn(work, until=60.5, name="validation")
    with entered(with_seconds(1.0, tenant_id="acme")):  # another tenant's call comes in between
        assert await task.wait() == ("bolt", "run-7", 60.0, 60.0)
    assert task.context.absolute_deadline == 60.5


@in_virtual_time
async def test_background_work_is_cut_at_its_deadline() -> None:
    scopes = Scopes("hop-a")
    with entered(with_seconds(60.0)):
        task = Background(scopes).spawn(asleep, until=2.0, name="cache write")
    with pytest.raises(DeadlineSpent):
        await task.wait()
    assert (now(), len(scopes)) == (2.0, 0)


@in_virtual_time
async def test_expired_background_work_never_starts() -> None:
    started: list[str] = []

    async def work() -> None:
        started.append("work")

    with entered(with_seconds(1.0)):
        await asyncio.sleep(3.0)
        task = Background(Scopes("hop-a")).spawn(work, until=2.0, name="cache write")
    with pytest.raises(DeadlineSpent):
        await task.wait()
    assert started == []


@in_virtual_time
async def test_leaving_waiter_does_not_end_the_work() -> None:
    scopes = Scopes("hop-a")

    async def work() -> str:
        await asyncio.sleep(3.0)
        return "written"

    with entered(with_seconds(10.0)):
        task = Background(scopes).spawn(work, until=10.0, name="cache write")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(task.wait(), 1.0)
    waiter = asyncio.create_task(task.wait())
    await asyncio.sleep(1.0)
    waiter.cancel()
    assert await task.wait() == "written"
    assert now() == 3.0


@in_virtual_time
async def test_background_work_is_stopped_with_a_cause() -> None:
    with entered(with_seconds(10.0)):
        task = Background(Scopes("hop-a")).spawn(asleep, until=10.0, name="cache write")
    await asyncio.sleep(1.0)
    task.stop(Cause.DRAINING)
    with pytest.raises(Draining):
        await task.wait()
    assert now() == 1.0


@in_virtual_time
async def test_work_stopped_before_its_first_step_never_starts() -> None:
    scopes = Scopes("hop-a")
    started: list[str] = []

    async def work() -> None:
        started.append("work")

    with entered(with_seconds(10.0)):
        task = Background(scopes).spawn(work, until=10.0, name="cache write")
    scopes.stop_all(Cause.DRAINING)
    with pytest.raises(Draining):
        await task.wait()
    assert (started, len(scopes)) == ([], 0)


@in_virtual_time
async def test_drain_waits_for_background_work_then_stops_it() -> None:
    scopes = Scopes("hop-a")
    with entered(with_seconds(10.0)):
        task = Background(scopes).spawn(asleep, until=10.0, name="cache write")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(scopes.emptied(), 1.0)
    scopes.stop_all(Cause.DRAINING)
    await scopes.emptied()
    with pytest.raises(Draining):
        await task.wait()


@in_virtual_time
async def test_background_work_owns_its_children() -> None:
    scopes = Scopes("hop-a")
    ended: list[float] = []

    async def child() -> None:
        try:
            await asleep()
        finally:
            ended.append(now())

    async def work() -> None:
        asyncio.ensure_future(child())  # noqa: RUF006 # the scope holds it
        await asleep()

    async def handler() -> None:
        Background(scopes).spawn(work, until=4.0, name="cache write")
        assert current_scope() is not None

    await call(scopes, handler)
    await scopes.emptied()
    assert ended == [4.0]


@in_virtual_time
async def test_unawaited_failure_is_logged_and_a_stop_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scopes = Scopes("hop-a")

    async def fails() -> None:
        raise LookupError("cache is gone")

    with caplog.at_level(logging.ERROR), entered(with_seconds(10.0)):
        Background(scopes).spawn(fails, until=1.0, name="cache write")
        Background(scopes).spawn(asleep, until=1.0, name="telemetry flush")
        await scopes.emptied()
        await asyncio.sleep(0)
    assert [record.getMessage() for record in caplog.records] == ["background work cache write failed"]
