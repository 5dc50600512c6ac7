"""A scope owns all that its work starts and ends it with the work, at the exact instant, for a cause it can name."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import weakref
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest
from tests.support.virtual import in_virtual_time, now, with_seconds

from deadlinemesh.deadline import (
    SYSTEM_CLOCK,
    DeadlineContext,
    Orphan,
    Scope,
    Scopes,
    current,
    current_or_none,
    entered,
    narrowed_after,
)
from deadlinemesh.deadline.scope import CANCEL_AGAIN_AFTER, REPORT_ORPHAN_AFTER, current_scope, own_tasks
from deadlinemesh.errors import Cause, ClientCancelled, DeadlineSpent, Draining, InternalFailure, Stopped
from deadlinemesh.testing import virtual_time


class Hop:
    """The scopes of one hop with the orphans that were reported."""

    def __init__(self) -> None:
        self.orphans: list[Orphan] = []
        self.scopes = Scopes("hop-a", self.orphans.append)

    def open(self, seconds: float = 10.0) -> Scope:
        return self.scopes.open(with_seconds(seconds))


class Stubborn:
    """Work that swallows every cancellation until it is let go."""

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


# --- the deadline ---


@in_virtual_time
async def test_work_that_is_quick_enough_gives_its_result() -> None:
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
async def test_a_result_that_comes_too_late_is_not_given() -> None:
    async def late() -> int:
        try:
            await asleep()
        except asyncio.CancelledError:
            return 42
        return 0

    with pytest.raises(DeadlineSpent):
        await Hop().open(1.0).run(late())


@in_virtual_time
async def test_an_error_of_the_work_goes_out_as_it_is() -> None:
    async def fails() -> None:
        raise LookupError("missing")

    hop = Hop()
    with pytest.raises(LookupError, match="missing"):
        await hop.open().run(fails())
    assert len(hop.scopes) == 0


@in_virtual_time
async def test_an_error_raised_while_being_stopped_is_kept_as_the_reason_of_the_cause() -> None:
    async def fails() -> None:
        try:
            await asleep()
        except asyncio.CancelledError:
            raise LookupError from None

    with pytest.raises(DeadlineSpent) as raised:
        await Hop().open(1.0).run(fails())
    assert isinstance(raised.value.__cause__, LookupError)


# --- what is current ---


@in_virtual_time
async def test_the_context_and_the_scope_are_current_inside_and_restored_after() -> None:
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
async def test_a_scope_leaves_no_trace_of_its_cancels_on_the_task_that_ran_it() -> None:
    async def caller() -> int:
        with pytest.raises(DeadlineSpent):
            await Hop().open(1.0).run(asleep())
        await asyncio.sleep(1.0)
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    own_tasks(asyncio.get_running_loop())
    assert await asyncio.create_task(caller()) == 0


def test_a_loop_with_another_task_factory_is_refused() -> None:
    loop = asyncio.new_event_loop()
    loop.set_task_factory(lambda loop, coroutine, **options: asyncio.Task(coroutine, loop=loop, **options))
    with pytest.raises(RuntimeError, match="task factory already"):
        own_tasks(loop)
    loop.close()


# --- children ---


@in_virtual_time
async def test_children_of_create_task_end_with_their_scope_at_the_exact_instant() -> None:
    ended: list[float] = []

    async def child(depth: int) -> None:
        if depth:
            asyncio.ensure_future(child(depth - 1))  # noqa: RUF006 # nobody else holds it: the scope must
        try:
            await asleep()
        finally:
            ended.append(now())

    async def work() -> None:
        asyncio.ensure_future(child(2))  # noqa: RUF006
        await asleep()

    hop = Hop()
    with pytest.raises(DeadlineSpent):
        await hop.open(2.0).run(work())
    assert ended == [2.0, 2.0, 2.0]
    assert len(hop.scopes) == 0


@in_virtual_time
async def test_children_that_are_left_at_a_normal_end_are_cancelled() -> None:
    ended: list[float] = []

    async def child() -> None:
        try:
            await asleep()
        finally:
            ended.append(now())

    async def work() -> int:
        asyncio.ensure_future(child())  # noqa: RUF006
        await asyncio.sleep(1.0)
        return 42

    scope = Hop().open()
    assert await scope.run(work()) == 42
    assert (ended, scope.cause) == ([1.0], None)


@in_virtual_time
async def test_the_end_waits_for_children_that_close_in_order() -> None:
    closed: list[float] = []

    async def child() -> None:
        try:
            await asleep()
        finally:
            await asyncio.sleep(CANCEL_AGAIN_AFTER / 2)
            closed.append(now())

    async def work() -> None:
        asyncio.ensure_future(child())  # noqa: RUF006
        await asyncio.sleep(1.0)

    await Hop().open().run(work())
    assert closed == [pytest.approx(1.0 + CANCEL_AGAIN_AFTER / 2)]


@in_virtual_time
async def test_a_task_born_while_its_scope_is_ending_ends_too() -> None:
    ended: list[float] = []

    async def late_child() -> None:
        try:
            await asleep()
        finally:
            ended.append(now())

    async def work() -> None:
        try:
            await asleep()
        finally:
            asyncio.ensure_future(late_child())  # noqa: RUF006

    hop = Hop()
    with pytest.raises(DeadlineSpent):
        await hop.open(1.0).run(work())
    assert ended == [pytest.approx(1.0 + CANCEL_AGAIN_AFTER)]
    assert len(hop.scopes) == 0


@in_virtual_time
async def test_a_task_born_after_the_end_of_its_scope_is_still_owned_and_ended() -> None:
    ended: list[float] = []

    async def late_child() -> None:
        try:
            await asleep()
        finally:
            ended.append(now())

    tasks: list[asyncio.Task[None]] = []

    async def work() -> None:
        # Callbacks run in the context that they were set up in.
        asyncio.get_running_loop().call_later(5.0, lambda: tasks.append(asyncio.ensure_future(late_child())))

    hop = Hop()
    await hop.open().run(work())
    assert len(hop.scopes) == 0
    await asyncio.sleep(5.0 + CANCEL_AGAIN_AFTER / 2)
    assert len(hop.scopes) == 1
    await hop.scopes.emptied()
    assert ended == [pytest.approx(5.0 + CANCEL_AGAIN_AFTER)]


@in_virtual_time
async def test_a_generator_that_is_collected_after_the_end_of_its_scope_can_still_clean_up() -> None:
    cleaned: list[float] = []
    kept: list[AsyncIterator[int]] = []

    async def generate() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(CANCEL_AGAIN_AFTER / 2)
            cleaned.append(now())

    async def work() -> None:
        kept.append(generate())
        await anext(kept[0])

    hop = Hop()
    await hop.open().run(work())
    kept.clear()
    gc.collect()
    await asyncio.sleep(1.0)
    assert cleaned == [pytest.approx(CANCEL_AGAIN_AFTER / 2)]
    assert len(hop.scopes) == 0


@in_virtual_time
async def test_two_scopes_in_one_loop_end_each_its_own_children_only() -> None:
    ended: list[tuple[str, float]] = []

    async def child(name: str) -> None:
        try:
            await asleep()
        finally:
            ended.append((name, now()))

    async def work(name: str) -> None:
        asyncio.ensure_future(child(name))  # noqa: RUF006
        await asleep()

    hop = Hop()
    await asyncio.gather(hop.open(1.0).run(work("a")), hop.open(3.0).run(work("b")), return_exceptions=True)
    assert ended == [("a", 1.0), ("b", 3.0)]


# --- causes ---


@in_virtual_time
async def test_a_cancel_by_another_task_is_the_client_leaving() -> None:
    scope = Hop().open()
    own_tasks(asyncio.get_running_loop())
    caller = asyncio.create_task(scope.run(asleep()))
    await asyncio.sleep(1.0)
    caller.cancel()
    with pytest.raises(ClientCancelled):
        await caller
    assert (now(), scope.cause) == (1.0, Cause.CLIENT_CANCELLED)


class Late:
    """A backlog in which a deadline became late by this part of what was granted."""

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
async def test_a_cancel_that_the_peers_timer_may_have_sent_is_the_deadlines(
    part: float, at: float, cause: Cause
) -> None:
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
async def test_a_client_that_leaves_cannot_be_hidden_by_work_that_swallows_the_cancel() -> None:
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
async def test_a_client_that_leaves_ends_the_children_too() -> None:
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
async def test_a_peers_timer_for_the_same_deadline_is_not_mistaken_for_the_client_leaving() -> None:
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
async def test_the_first_cause_stands() -> None:
    hop = Hop()
    scope = hop.open(1.0)
    stubborn = Stubborn()
    asyncio.get_running_loop().call_later(1.1, scope.stop, Cause.DRAINING)
    asyncio.get_running_loop().call_later(1.2, setattr, stubborn, "let_go", True)
    with pytest.raises(DeadlineSpent):
        await scope.run(stubborn())


@in_virtual_time
async def test_a_scope_that_is_over_ignores_a_stop() -> None:
    scope = Hop().open()
    await scope.run(answer())
    scope.stop(Cause.DRAINING)
    assert scope.cause is None


@in_virtual_time
async def test_a_scope_that_was_stopped_before_its_work_began_never_begins_it() -> None:
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
async def test_a_cancelled_error_that_nobody_asked_for_is_an_internal_failure() -> None:
    async def cancels_itself() -> None:
        raise asyncio.CancelledError

    with pytest.raises(InternalFailure, match="cancelled itself"):
        await Hop().open().run(cancels_itself())


@in_virtual_time
async def test_awaiting_a_task_that_somebody_cancelled_is_an_internal_failure_not_a_client_leaving() -> None:
    async def work() -> None:
        child = asyncio.ensure_future(asleep())
        asyncio.get_running_loop().call_later(1.0, child.cancel)
        await child

    with pytest.raises(InternalFailure):
        await Hop().open().run(work())


# --- what is not a caller leaving ---


@in_virtual_time
async def test_an_asyncio_timeout_inside_the_work_is_not_the_client_leaving() -> None:
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
async def test_a_narrowed_block_inside_the_work_is_not_the_client_leaving() -> None:
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
async def test_a_task_group_that_fails_inside_the_work_is_not_the_client_leaving() -> None:
    async def fails() -> None:
        await asyncio.sleep(1.0)
        raise LookupError

    async def work() -> str:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(fails())
                await asleep()  # the group must cancel the scope's main task itself
        except* LookupError:
            pass
        await asyncio.sleep(1.0)
        return "went on"

    scope = Hop().open()
    assert await scope.run(work()) == "went on"
    assert scope.cause is None


@in_virtual_time
async def test_a_child_that_cancels_the_scopes_main_task_is_not_the_client_leaving() -> None:
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
async def test_a_deadline_inside_a_narrowed_block_of_the_same_instant_is_the_scopes() -> None:
    async def work() -> None:
        async with narrowed_after(60.0, "tool_call"):
            await asleep()

    scope = Hop().open(1.0)
    with pytest.raises(DeadlineSpent):
        await scope.run(work())
    assert (now(), scope.cause) == (1.0, Cause.DEADLINE_SPENT)


@in_virtual_time
async def test_an_asyncio_timeout_around_a_scope_stays_a_timeout_error_and_ends_everything_under_it() -> None:
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
async def test_a_call_that_is_left_before_its_first_step_leaves_no_live_scope() -> None:
    hop = Hop()
    assert asyncio.get_running_loop().get_task_factory() is None  # the scope needs a task of its own here

    async def caller() -> None:
        async with asyncio.timeout(0):
            await hop.open().run(asleep())

    with pytest.raises(TimeoutError):
        await caller()
    assert len(hop.scopes) == 0


@in_virtual_time
async def test_of_two_nested_scopes_both_learn_that_the_client_left() -> None:
    hop = Hop()
    outer, inner = hop.open(), hop.open(5.0)

    async def work() -> str:
        try:
            await inner.run(asleep())
        except ClientCancelled:
            await asleep()  # it must not matter that the inner scope's error was swallowed
        return ""

    own_tasks(asyncio.get_running_loop())
    caller = asyncio.create_task(outer.run(work()))
    await asyncio.sleep(1.0)
    caller.cancel()
    with pytest.raises(ClientCancelled):
        await caller
    assert (inner.cause, outer.cause) == (Cause.CLIENT_CANCELLED, Cause.CLIENT_CANCELLED)
    assert now() == pytest.approx(1.0, abs=2 * CANCEL_AGAIN_AFTER)


# --- orphans ---


@in_virtual_time
async def test_stubborn_work_is_cancelled_again_until_it_goes() -> None:
    hop = Hop()
    stubborn = Stubborn()
    asyncio.get_running_loop().call_later(1.1, setattr, stubborn, "let_go", True)
    with pytest.raises(DeadlineSpent):
        await hop.open(1.0).run(stubborn())
    assert stubborn.cancels == pytest.approx([1.0, 1.05, 1.1])
    assert hop.orphans == []


@in_virtual_time
async def test_stubborn_work_is_reported_once_with_tenant_hop_place_and_age() -> None:
    hop = Hop()
    stubborn = Stubborn()
    scope = hop.open(1.0)
    asyncio.get_running_loop().call_later(9.0, setattr, stubborn, "let_go", True)
    with pytest.raises(DeadlineSpent):
        await scope.run(stubborn())
    (orphan,) = hop.orphans
    assert (orphan.context, orphan.hop) == (scope.context, "hop-a")
    assert orphan.age == pytest.approx(REPORT_ORPHAN_AFTER)
    assert " at asleep:" in orphan.task  # where it stands
    assert now() == pytest.approx(9.0, abs=CANCEL_AGAIN_AFTER)
    assert len(stubborn.cancels) > 100


@in_virtual_time
async def test_stubborn_work_is_told_of_once_so_that_the_client_can_be_answered() -> None:
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
async def test_work_that_goes_in_time_is_never_told_of() -> None:
    told: list[float] = []
    scope = Hop().open(1.0)
    scope.on_overdue = lambda scope: told.append(now())
    with pytest.raises(DeadlineSpent):
        await scope.run(asleep())
    await asyncio.sleep(1.0)
    assert told == []


@in_virtual_time
async def test_stubborn_children_are_reported_once_each_and_the_caller_waits_no_longer() -> None:
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


@in_virtual_time
async def test_a_client_that_leaves_while_a_good_call_waits_for_its_children_is_a_cause_too() -> None:
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
async def test_a_deadline_that_passes_while_a_good_call_waits_for_its_children_is_not_the_client_leaving() -> None:
    stubborn = Stubborn()

    async def work() -> int:
        asyncio.ensure_future(stubborn())  # noqa: RUF006
        await asyncio.sleep(0)
        return 42

    own_tasks(asyncio.get_running_loop())
    hop = Hop()
    caller = asyncio.create_task(hop.open(0.1).run(work()))
    await asyncio.sleep(0.1)
    caller.cancel()  # as grpc.aio does when its own timer fires
    with pytest.raises(DeadlineSpent):
        await caller
    stubborn.let_go = True
    await hop.scopes.emptied()


# --- things that are not tasks ---


@in_virtual_time
async def test_what_is_owned_is_closed_at_a_normal_end() -> None:
    closed: list[float] = []

    async def work() -> int:
        scope = current_scope()
        assert scope is not None
        scope.own(lambda: closed.append(now()))
        await asyncio.sleep(1.0)
        return 42

    assert await Hop().open().run(work()) == 42
    assert closed == [1.0]


@pytest.mark.parametrize("cause", [Cause.DEADLINE_SPENT, Cause.CLIENT_CANCELLED])
@in_virtual_time
async def test_what_work_begins_as_it_is_being_ended_is_closed_with_it(cause: Cause) -> None:
    scope = Hop().open()
    closed: list[float] = []

    async def work() -> None:
        try:
            await asyncio.sleep(3600.0)
        finally:
            scope.own(lambda: closed.append(now()))

    asyncio.get_running_loop().call_later(1.0, scope.stop, cause)
    with pytest.raises(Stopped):
        await scope.run(work())
    assert closed == [1.0]


@in_virtual_time
async def test_what_is_owned_is_closed_at_the_exact_instant_even_if_the_work_is_stubborn() -> None:
    closed: list[float] = []
    stubborn = Stubborn()

    async def work() -> None:
        scope = current_scope()
        assert scope is not None
        scope.own(lambda: closed.append(now()))
        await stubborn()

    asyncio.get_running_loop().call_later(2.0, setattr, stubborn, "let_go", True)
    with pytest.raises(DeadlineSpent):
        await Hop().open(1.0).run(work())
    assert closed == [1.0]


@in_virtual_time
async def test_what_was_disowned_is_left_alone() -> None:
    closed: list[float] = []

    async def work() -> None:
        scope = current_scope()
        assert scope is not None
        disown = scope.own(lambda: closed.append(now()))
        disown()
        disown()

    await Hop().open().run(work())
    assert closed == []


@in_virtual_time
async def test_a_closer_that_fails_keeps_nothing_else_from_being_ended() -> None:
    closed: list[float] = []
    ended: list[float] = []

    def fails() -> None:
        raise OSError("already closed")

    async def child() -> None:
        try:
            await asleep()
        finally:
            ended.append(now())

    async def work() -> None:
        scope = current_scope()
        assert scope is not None
        closers: list[Callable[[], object]] = [fails, lambda: closed.append(now()), fails]
        for close in closers:
            scope.own(close)
        asyncio.ensure_future(child())  # noqa: RUF006
        await asleep()

    hop = Hop()
    with pytest.raises(DeadlineSpent):
        await hop.open(1.0).run(work())
    assert (closed, ended, len(hop.scopes)) == ([1.0], [1.0], 0)


# --- all scopes of a hop ---


@in_virtual_time
async def test_stopping_all_scopes_gives_each_the_cause() -> None:
    hop = Hop()
    scopes = [hop.open() for _ in range(3)]
    asyncio.get_running_loop().call_later(1.0, hop.scopes.stop_all, Cause.DRAINING)
    outcomes = await asyncio.gather(*(scope.run(asleep()) for scope in scopes), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Draining] * 3
    assert list(hop.scopes) == []


@in_virtual_time
async def test_emptied_waits_for_the_last_scope() -> None:
    hop = Hop()
    await hop.scopes.emptied()  # none is live

    callers = [asyncio.create_task(hop.open(seconds).run(asleep())) for seconds in (1.0, 4.0, 2.0)]
    await asyncio.gather(*(wait_until_empty(hop) for _ in range(2)))
    assert now() == 4.0
    await asyncio.gather(*callers, return_exceptions=True)


@in_virtual_time
async def test_drained_waits_for_no_orphan() -> None:
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


async def wait_until_empty(hop: Hop) -> None:
    await hop.scopes.emptied()
    assert len(hop.scopes) == 0


@in_virtual_time
async def test_a_scope_shows_who_it_is() -> None:
    scope = Hop().open()
    assert repr(scope) == "<Scope hop-a run=run-1 tasks=0 cause=None>"


@in_virtual_time
async def test_context_variables_of_the_work_stay_with_the_caller_as_in_any_awaited_coroutine() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

    async def work() -> None:
        variable.set("by the work")

    async def caller() -> str:
        await Hop().open().run(work())
        return variable.get()

    own_tasks(asyncio.get_running_loop())
    assert await asyncio.create_task(caller()) == "by the work"


@in_virtual_time
async def test_an_error_without_a_hop_name_still_reads_well() -> None:
    scope = Scopes("").open(replace(with_seconds(1.0), run_id=""))
    with pytest.raises(DeadlineSpent, match="granted to this work are spent"):
        await scope.run(asleep())


def test_a_loop_that_shuts_down_cancels_live_scopes_like_any_task() -> None:
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


@pytest.mark.parametrize("start", [0.0, 3.0, 1e6 + 0.1])
@in_virtual_time
async def test_an_orphan_is_reported_in_time_wherever_the_clock_stands(start: float) -> None:
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


# --- what must not be cut in the middle ---


@in_virtual_time
async def test_cancellations_are_put_off_while_the_work_holds_and_raised_when_it_lets_go() -> None:
    scope, seen = Hop().open(1.0), list[str]()

    async def work() -> None:
        assert scope.hold()
        await asyncio.sleep(5.0)
        seen.append("not cut")
        assert scope.let_go()
        await asyncio.sleep(0)
        seen.append("never")

    with pytest.raises(DeadlineSpent):
        await scope.run(work())
    assert (seen, now()) == (["not cut"], pytest.approx(5.0))


@in_virtual_time
async def test_what_the_work_started_is_cut_even_while_it_holds() -> None:
    scope, cut = Hop().open(1.0), list[float]()

    async def child() -> None:
        try:
            await asleep()
        finally:
            cut.append(now())

    async def work() -> None:
        children = [asyncio.create_task(child())]
        scope.hold()
        await asyncio.sleep(5.0)
        scope.let_go()
        await asyncio.wait(children)

    with pytest.raises(DeadlineSpent):
        await scope.run(work())
    assert cut == [1.0]


@in_virtual_time
async def test_a_callers_cancel_is_put_off_too_and_loses_nothing() -> None:
    scope, seen = Hop().open(), list[str]()

    async def work() -> None:
        scope.hold()
        await asyncio.sleep(1.0)
        seen.append("not cut")
        scope.let_go()
        await asleep()

    task = asyncio.create_task(scope.run(work()))
    await asyncio.sleep(0.5)
    task.cancel()
    with pytest.raises(ClientCancelled):
        await task
    assert (seen, now(), scope.caller_left) == (["not cut"], 1.0, True)


@in_virtual_time
async def test_an_outer_scope_is_held_by_the_inner_one() -> None:
    hop = Hop()
    outer, inner = hop.open(1.0), hop.open(9.0)

    async def work() -> None:
        inner.hold()
        await asyncio.sleep(5.0)
        inner.let_go()
        await asleep()

    with pytest.raises(DeadlineSpent):
        await outer.run(inner.run(work()))
    assert now() == pytest.approx(5.0)


@in_virtual_time
async def test_without_a_cancellation_letting_go_changes_nothing() -> None:
    scope = Hop().open()

    async def work() -> int:
        assert scope.hold()
        await asyncio.sleep(1.0)
        assert not scope.let_go()
        await asyncio.sleep(1.0)
        return 42

    assert await scope.run(work()) == 42


@in_virtual_time
async def test_only_the_task_that_runs_the_scope_can_hold() -> None:
    scope = Hop().open()

    async def child() -> bool:
        return scope.hold()

    async def work() -> bool:
        return await asyncio.create_task(child())

    assert not scope.hold()
    assert not await scope.run(work())
    assert not scope.hold()


# --- what is left of it ---


@pytest.mark.parametrize("near", [0.0, 400.0], ids=["looked-out-for", "with-a-timer"])
async def test_a_scope_that_is_over_is_gone_without_the_cycle_collector(
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
async def test_what_cut_work_held_is_freed_at_once_and_where_hundreds_end_together_soon(
    count: int, at_once: bool
) -> None:
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
