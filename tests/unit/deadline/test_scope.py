"""A scope ends its work at the exact instant of the deadline, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import weakref
from dataclasses import replace

import pytest
from tests.support.scopes import Hop, Stubborn, answer, asleep
from tests.support.virtual import in_virtual_time, now, with_seconds

from deadlinemesh.deadline import SYSTEM_CLOCK, DeadlineContext, Scope, Scopes, current, current_or_none, entered
from deadlinemesh.deadline.scope import current_scope, own_tasks
from deadlinemesh.errors import Cause, DeadlineSpent, Draining
from deadlinemesh.testing import virtual_time


@in_virtual_time
async def test_quick_work_returns_its_result() -> None:
    hop = Hop()
    scope = hop.open()
    assert await scope.run(answer()) == 42
    assert scope.cause is None
    assert len(hop.scopes) == 0


@in_virtual_time
async def test_work_ends_at_the_exact_instant_of_its_deadline() -> None:
    scope = Hop().open(3.25)
    with pytest.raises(DeadlineSpent, match=r"3\.250 s granted to hop-a"):
        await scope.run(asleep())
    assert (now(), scope.cause) == (3.25, Cause.DEADLINE_SPENT)


@in_virtual_time
async def test_expired_work_never_starts() -> None:
    hop = Hop()
    scope = hop.open(1.0)
    await asyncio.sleep(1.0)
    started = False

    async def work() -> None:
        nonlocal started
        started = True

    with pytest.raises(DeadlineSpent):
        await scope.run(work())
    assert (started, scope.cause, len(hop.scopes)) == (False, Cause.DEADLINE_SPENT, 0)


@in_virtual_time
async def test_late_result_is_discarded() -> None:
    async def late() -> int:
        try:
            await asleep()
        except asyncio.CancelledError:
            return 42
        return 0

    with pytest.raises(DeadlineSpent):
        await Hop().open(1.0).run(late())


@in_virtual_time
async def test_error_of_the_work_is_raised_unchanged() -> None:
    async def fails() -> None:
        raise LookupError("missing")

    hop = Hop()
    with pytest.raises(LookupError, match="missing"):
        await hop.open().run(fails())
    assert len(hop.scopes) == 0


@in_virtual_time
async def test_error_during_a_stop_is_chained() -> None:
    async def fails() -> None:
        try:
            await asleep()
        except asyncio.CancelledError:
            raise LookupError from None

    with pytest.raises(DeadlineSpent) as raised:
        await Hop().open(1.0).run(fails())
    assert isinstance(raised.value.__cause__, LookupError)


@in_virtual_time
async def test_context_and_scope_are_current_inside_only() -> None:
    hop = Hop()
    outside = with_seconds(99.0, tenant_id="outside")

    async def look() -> tuple[str, Scope | None]:
        return current().tenant_id, current_scope()

    async def caller() -> None:
        with entered(outside):
            for fails in (False, True):
                scope = hop.open(1.0)
                if fails:
                    with pytest.raises(DeadlineSpent):
                        await scope.run(asleep())
                else:
                    assert await scope.run(look()) == ("acme", scope)
                assert current() is outside
                assert current_scope() is None

    own_tasks(asyncio.get_running_loop())
    await asyncio.create_task(caller())
    assert current_or_none() is None


@in_virtual_time
async def test_scope_leaves_no_cancel_count_on_its_task() -> None:
    async def caller() -> int:
        with pytest.raises(DeadlineSpent):
            await Hop().open(1.0).run(asleep())
        await asyncio.sleep(1.0)
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    own_tasks(asyncio.get_running_loop())
    assert await asyncio.create_task(caller()) == 0


def test_loop_with_another_task_factory_is_refused() -> None:
    loop = asyncio.new_event_loop()
    loop.set_task_factory(lambda loop, coroutine, **options: asyncio.Task(coroutine, loop=loop, **options))
    with pytest.raises(RuntimeError, match="task factory already"):
        own_tasks(loop)
    loop.close()


@in_virtual_time
async def test_stop_all_gives_each_scope_the_cause() -> None:
    hop = Hop()
    scopes = [hop.open() for _ in range(3)]
    asyncio.get_running_loop().call_later(1.0, hop.scopes.stop_all, Cause.DRAINING)
    outcomes = await asyncio.gather(*(scope.run(asleep()) for scope in scopes), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Draining] * 3
    assert list(hop.scopes) == []


@in_virtual_time
async def test_emptied_waits_for_the_last_scope() -> None:
    hop = Hop()
    await hop.scopes.emptied()  # no scope is live

    callers = [asyncio.create_task(hop.open(seconds).run(asleep())) for seconds in (1.0, 4.0, 2.0)]
    await asyncio.gather(*(wait_until_empty(hop) for _ in range(2)))
    assert now() == 4.0
    await asyncio.gather(*callers, return_exceptions=True)


async def wait_until_empty(hop: Hop) -> None:
    await hop.scopes.emptied()
    assert len(hop.scopes) == 0


@in_virtual_time
async def test_scope_repr_shows_hop_run_tasks_and_cause() -> None:
    scope = Hop().open()
    assert repr(scope) == "<Scope hop-a run=run-1 tasks=0 cause=None>"


@in_virtual_time
async def test_context_variables_of_the_work_reach_the_caller() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

    async def work() -> None:
        variable.set("by the work")

    async def caller() -> str:
        await Hop().open().run(work())
        return variable.get()

    own_tasks(asyncio.get_running_loop())
    assert await asyncio.create_task(caller()) == "by the work"


@in_virtual_time
async def test_error_without_a_hop_name_reads_well() -> None:
    scope = Scopes("").open(replace(with_seconds(1.0), run_id=""))
    with pytest.raises(DeadlineSpent, match="granted to this work are spent"):
        await scope.run(asleep())


def test_loop_shutdown_cancels_live_scopes() -> None:
    hop = Hop()
    ended: list[str] = []

    async def work() -> None:
        try:
            await asleep()
        finally:
            ended.append("work")

    async def main() -> None:
        own_tasks(asyncio.get_running_loop())
        callers.append(asyncio.create_task(hop.open().run(work())))
        await asyncio.sleep(1.0)

    callers: list[asyncio.Task[None]] = []
    virtual_time.run(main())
    assert ended == ["work"]
    assert callers[0].cancelled()
    assert len(hop.scopes) == 0


@pytest.mark.parametrize("near", [0.0, 400.0], ids=["looked-out-for", "with-a-timer"])
async def test_finished_scope_is_freed_without_the_cycle_collector(
    near: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deadlinemesh.deadline.coarse_timers.NEAR", near)
    started_at = SYSTEM_CLOCK.monotonic()
    context = DeadlineContext("acme", started_at + 300.0, "free", "0" * 31 + "1", "run-1", started_at)
    scopes = Scopes("hop-a")
    await scopes.open(context).run(answer())
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(10):
            await scopes.open(context).run(answer())
        gc.collect()
        assert [one for one in gc.garbage if isinstance(one, Scope)] == []
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


@pytest.mark.parametrize(("count", "at_once"), [(1, True), (300, False)])
@in_virtual_time
async def test_objects_of_cut_work_are_freed_at_once_or_soon(count: int, at_once: bool) -> None:
    hop, held = Hop(), list[weakref.ref[Stubborn]]()

    async def hold() -> None:
        thing = Stubborn()
        held.append(weakref.ref(thing))
        await asleep()

    runs = [asyncio.create_task(hop.open().run(hold())) for _ in range(count)]
    await asyncio.sleep(1.0)
    hop.scopes.stop_all(Cause.CLIENT_CANCELLED)
    await asyncio.wait(runs)
    runs.clear()
    assert all(thing() is None for thing in held) == at_once
    await asyncio.sleep(2.0)
    assert all(thing() is None for thing in held)
