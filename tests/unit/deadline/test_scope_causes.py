"""A scope names the cause of its end, and tells a leaving client from timers and timeouts."""

from __future__ import annotations

import asyncio

import pytest
from tests.support.scopes import Hop, Stubborn, answer, asleep
from tests.support.virtual import in_virtual_time, now

from deadlinemesh.deadline import narrowed_after
from deadlinemesh.deadline.scope import CANCEL_AGAIN_AFTER, own_tasks
from deadlinemesh.errors import Cause, ClientCancelled, DeadlineSpent, Draining, InternalFailure, Stopped


@in_virtual_time
async def test_cancel_by_another_task_is_client_cancelled() -> None:
    scope = Hop().open()
    own_tasks(asyncio.get_running_loop())
    caller = asyncio.create_task(scope.run(asleep()))
    await asyncio.sleep(1.0)
    caller.cancel()
    with pytest.raises(ClientCancelled):
        await caller
    assert (now(), scope.cause) == (1.0, Cause.CLIENT_CANCELLED)


class Late:
    """A backlog that delays deadlines by this part of the granted time."""

    def __init__(self, part: float) -> None:
        self.part = part

    def drift(self, granted: float) -> float:
        return self.part * granted


@pytest.mark.parametrize(
    ("part", "at", "cause"),
    [
        (0.0, 9.99, Cause.CLIENT_CANCELLED),
        (0.0, 9.996, Cause.DEADLINE_SPENT),
        (0.01, 9.89, Cause.CLIENT_CANCELLED),
        (0.01, 9.9, Cause.DEADLINE_SPENT),
    ],
)
@in_virtual_time
async def test_cancel_at_the_deadline_is_the_peers_timer(part: float, at: float, cause: Cause) -> None:
    hop = Hop()
    outer, inner = hop.open(10.0), hop.open(10.0)
    outer.backlog = Late(part)
    own_tasks(asyncio.get_running_loop())
    caller = asyncio.create_task(outer.run(inner.run(asleep())))
    await asyncio.sleep(at)
    caller.cancel()
    with pytest.raises(Stopped):
        await caller
    assert (outer.cause, inner.cause) == (cause, cause)


@in_virtual_time
async def test_swallowed_cancel_is_still_client_cancelled() -> None:
    async def swallows() -> int:
        try:
            await asleep()
        except asyncio.CancelledError:
            return 42
        return 0

    own_tasks(asyncio.get_running_loop())
    caller = asyncio.create_task(Hop().open().run(swallows()))
    await asyncio.sleep(1.0)
    caller.cancel()
    with pytest.raises(ClientCancelled):
        await caller


@in_virtual_time
async def test_leaving_client_ends_the_children_too() -> None:
    ended: list[float] = []

    async def child() -> None:
        try:
            await asleep()
        finally:
            ended.append(now())

    async def work() -> None:
        asyncio.ensure_future(child())  # noqa: RUF006
        await asleep()

    own_tasks(asyncio.get_running_loop())
    caller = asyncio.create_task(Hop().open().run(work()))
    await asyncio.sleep(1.0)
    caller.cancel()
    with pytest.raises(ClientCancelled):
        await caller
    assert ended == [1.0]


@in_virtual_time
async def test_peers_timer_is_not_taken_for_a_leaving_client() -> None:
    own_tasks(asyncio.get_running_loop())
    caller = asyncio.create_task(Hop().open(1.0).run(asleep()))
    await asyncio.sleep(0.999)
    caller.cancel()
    with pytest.raises(DeadlineSpent):
        await caller


@pytest.mark.parametrize(
    ("cause", "error"),
    [
        (Cause.DEADLINE_SPENT, DeadlineSpent),
        (Cause.CLIENT_CANCELLED, ClientCancelled),
        (Cause.DRAINING, Draining),
    ],
)
@in_virtual_time
async def test_each_cause_has_its_own_error(cause: Cause, error: type[Stopped]) -> None:
    scope = Hop().open()
    asyncio.get_running_loop().call_later(1.0, scope.stop, cause)
    with pytest.raises(error) as raised:
        await scope.run(asleep())
    assert (raised.value.hop, raised.value.reason) == ("hop-a", cause.value)


@in_virtual_time
async def test_first_cause_stands() -> None:
    hop = Hop()
    scope = hop.open(1.0)
    stubborn = Stubborn()
    asyncio.get_running_loop().call_later(1.1, scope.stop, Cause.DRAINING)
    asyncio.get_running_loop().call_later(1.2, setattr, stubborn, "let_go", True)
    with pytest.raises(DeadlineSpent):
        await scope.run(stubborn())


@in_virtual_time
async def test_finished_scope_ignores_a_stop() -> None:
    scope = Hop().open()
    await scope.run(answer())
    scope.stop(Cause.DRAINING)
    assert scope.cause is None


@in_virtual_time
async def test_scope_stopped_early_never_begins_its_work() -> None:
    hop = Hop()
    scope = hop.open()
    hop.scopes.stop_all(Cause.DRAINING)
    started = False

    async def work() -> None:
        nonlocal started
        started = True

    with pytest.raises(Draining):
        await scope.run(work())
    assert (started, len(hop.scopes)) == (False, 0)


@in_virtual_time
async def test_work_may_stop_its_own_scope() -> None:
    scope = Hop().open()

    async def work() -> None:
        scope.stop(Cause.DRAINING)

    async def caller() -> None:
        with pytest.raises(Draining):
            await scope.run(work())
        await asyncio.sleep(1.0)  # the caller's own next wait is not cancelled

    own_tasks(asyncio.get_running_loop())
    await asyncio.create_task(caller())


@in_virtual_time
async def test_unrequested_cancelled_error_is_internal_failure() -> None:
    async def cancels_itself() -> None:
        raise asyncio.CancelledError

    with pytest.raises(InternalFailure, match="cancelled itself"):
        await Hop().open().run(cancels_itself())


@in_virtual_time
async def test_awaiting_a_cancelled_task_is_internal_failure() -> None:
    async def work() -> None:
        child = asyncio.ensure_future(asleep())
        asyncio.get_running_loop().call_later(1.0, child.cancel)
        await child

    with pytest.raises(InternalFailure):
        await Hop().open().run(work())


@in_virtual_time
async def test_asyncio_timeout_in_the_work_is_no_leaving_client() -> None:
    async def work() -> str:
        try:
            async with asyncio.timeout(1.0):
                await asleep()
        except TimeoutError:
            await asyncio.sleep(1.0)
            return "went on"
        return ""

    scope = Hop().open()
    assert await scope.run(work()) == "went on"
    assert scope.cause is None


@in_virtual_time
async def test_narrowed_block_in_the_work_is_no_leaving_client() -> None:
    async def work() -> str:
        try:
            async with narrowed_after(1.0):
                await asleep()
        except DeadlineSpent:
            await asyncio.sleep(1.0)
            return "went on"
        return ""

    scope = Hop().open()
    assert await scope.run(work()) == "went on"
    assert scope.cause is None


@in_virtual_time
async def test_failed_task_group_in_the_work_is_no_leaving_client() -> None:
    async def fails() -> None:
        await asyncio.sleep(1.0)
        raise LookupError

    async def work() -> str:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(fails())
                await asleep()  # the group itself must cancel the scope's main task
        except* LookupError:
            pass
        await asyncio.sleep(1.0)
        return "went on"

    scope = Hop().open()
    assert await scope.run(work()) == "went on"
    assert scope.cause is None


@in_virtual_time
async def test_cancel_by_a_child_is_no_leaving_client() -> None:
    async def work() -> str:
        main = asyncio.current_task()
        assert main is not None

        async def child(parent: asyncio.Task[object]) -> None:
            await asyncio.sleep(1.0)
            parent.cancel()

        asyncio.ensure_future(child(main))  # noqa: RUF006
        try:
            await asleep()
        except asyncio.CancelledError:
            main.uncancel()
        return "went on"

    scope = Hop().open()
    assert await scope.run(work()) == "went on"
    assert scope.cause is None


@in_virtual_time
async def test_scopes_deadline_wins_in_a_narrowed_block() -> None:
    async def work() -> None:
        async with narrowed_after(60.0, "tool_call"):
            await asleep()

    scope = Hop().open(1.0)
    with pytest.raises(DeadlineSpent):
        await scope.run(work())
    assert (now(), scope.cause) == (1.0, Cause.DEADLINE_SPENT)


@in_virtual_time
async def test_asyncio_timeout_around_a_scope_ends_its_task_tree() -> None:
    ended: list[float] = []

    async def child() -> None:
        try:
            await asleep()
        finally:
            ended.append(now())

    async def work() -> None:
        asyncio.ensure_future(child())  # noqa: RUF006
        await asleep()

    async def caller() -> None:
        async with asyncio.timeout(1.0):
            await Hop().open().run(work())

    own_tasks(asyncio.get_running_loop())
    with pytest.raises(TimeoutError):
        await asyncio.create_task(caller())
    assert ended == [1.0]


@in_virtual_time
async def test_call_left_before_its_first_step_leaves_no_scope() -> None:
    hop = Hop()
    # Without a task factory, the scope needs its own task.
    assert asyncio.get_running_loop().get_task_factory() is None

    async def caller() -> None:
        async with asyncio.timeout(0):
            await hop.open().run(asleep())

    with pytest.raises(TimeoutError):
        await caller()
    assert len(hop.scopes) == 0


@in_virtual_time
async def test_nested_scopes_both_see_the_client_leave() -> None:
    hop = Hop()
    outer, inner = hop.open(), hop.open(5.0)

    async def work() -> str:
        try:
            await inner.run(asleep())
        except ClientCancelled:
            await asleep()  # swallowing the inner scope's error must not matter
        return ""

    own_tasks(asyncio.get_running_loop())
    caller = asyncio.create_task(outer.run(work()))
    await asyncio.sleep(1.0)
    caller.cancel()
    with pytest.raises(ClientCancelled):
        await caller
    assert (inner.cause, outer.cause) == (Cause.CLIENT_CANCELLED, Cause.CLIENT_CANCELLED)
    assert now() == pytest.approx(1.0, abs=2 * CANCEL_AGAIN_AFTER)


@in_virtual_time
async def test_client_leaving_while_children_end_is_a_cause() -> None:
    stubborn = Stubborn()

    async def work() -> int:
        asyncio.ensure_future(stubborn())  # noqa: RUF006
        await asyncio.sleep(0)
        return 42

    own_tasks(asyncio.get_running_loop())
    hop = Hop()
    caller = asyncio.create_task(hop.open().run(work()))
    await asyncio.sleep(0.1)
    caller.cancel()
    with pytest.raises(ClientCancelled):
        await caller
    stubborn.let_go = True
    await hop.scopes.emptied()


@in_virtual_time
async def test_deadline_passing_while_children_end_is_the_cause() -> None:
    stubborn = Stubborn()

    async def work() -> int:
        asyncio.ensure_future(stubborn())  # noqa: RUF006
        await asyncio.sleep(0)
        return 42

    own_tasks(asyncio.get_running_loop())
    hop = Hop()
    caller = asyncio.create_task(hop.open(0.1).run(work()))
    await asyncio.sleep(0.1)
    caller.cancel()  # as grpc.aio does at its own timer
    with pytest.raises(DeadlineSpent):
        await caller
    stubborn.let_go = True
    await hop.scopes.emptied()
