"""Attempts fit into the remaining time, or are not made."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.virtual import in_virtual_time, now, with_seconds

from deadlinemesh.deadline import (
    Attempt,
    AttemptHung,
    Retry,
    RetryBudget,
    RetryPolicy,
    SilenceTimeout,
    current,
    entered,
    narrowed_after,
    retried,
)
from deadlinemesh.errors import DeadlineSpent, Shed, UpstreamFailed
from deadlinemesh.testing import virtual_time


class Upstream:
    """Fails with each of `errors` in turn, then answers. Each attempt takes `seconds`."""

    def __init__(self, *errors: Exception, seconds: float = 0.0) -> None:
        self.errors = list(errors)
        self.seconds = seconds
        self.started: list[float] = []
        self.granted: list[float] = []

    async def __call__(self, attempt: Attempt) -> str:
        self.started.append(now())
        self.granted.append(current().remaining)
        await asyncio.sleep(self.seconds)
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


def transient(error: Exception) -> bool:
    return isinstance(error, (Shed, UpstreamFailed))


async def retried_for(
    seconds: float, upstream: Upstream, policy: RetryPolicy, *, draw: Callable[[], float] = lambda: 1.0
) -> str:
    with entered(with_seconds(seconds)):
        return await retried(upstream, policy, is_transient=transient, draw=draw)


@in_virtual_time
async def test_success_is_not_repeated() -> None:
    upstream = Upstream()
    assert await retried_for(10.0, upstream, RetryPolicy(retries=3)) == "answer"
    assert upstream.started == [0.0]


@in_virtual_time
async def test_transient_failures_are_retried_with_doubling_backoff() -> None:
    upstream = Upstream(*(UpstreamFailed("reset") for _ in range(3)))
    assert await retried_for(10.0, upstream, RetryPolicy(retries=3, first_backoff=0.1)) == "answer"
    assert upstream.started == pytest.approx([0.0, 0.1, 0.3, 0.7])


class Hanging:
    """An upstream that is silent for `seconds` in each attempt but the last."""

    def __init__(self, attempts: int, seconds: float = 3600.0) -> None:
        self.attempts = attempts
        self.seconds = seconds
        self.spans: list[tuple[float, float]] = []

    async def __call__(self, attempt: Attempt) -> str:
        began_at = now()
        try:
            await self.wait(attempt)
        finally:
            self.spans.append((began_at, now()))
        return "answer"

    async def wait(self, attempt: Attempt) -> None:
        await asyncio.sleep(self.seconds if len(self.spans) < self.attempts - 1 else 0.0)


@in_virtual_time
async def test_attempts_get_80_percent_and_the_last_gets_all() -> None:
    hanging = Hanging(attempts=4)
    with entered(with_seconds(10.0)), pytest.raises(DeadlineSpent):
        async with narrowed_after(10.0):
            await retried(hanging, RetryPolicy(retries=2, first_backoff=0.0), is_transient=transient, draw=lambda: 0.0)
    assert hanging.spans == [pytest.approx(span) for span in [(0.0, 8.0), (8.0, 9.6), (9.6, 10.0)]]


@in_virtual_time
async def test_attempt_past_its_share_is_cut_and_retried() -> None:
    hanging = Hanging(attempts=2)
    policy = RetryPolicy(retries=1, first_backoff=0.5)
    with entered(with_seconds(10.0)):
        assert await retried(hanging, policy, is_transient=transient, draw=lambda: 1.0) == "answer"
    assert hanging.spans == [(0.0, 8.0), (8.5, 8.5)]


@in_virtual_time
async def test_attempt_keeps_its_callers_deadline() -> None:
    upstream = Upstream(UpstreamFailed("reset"), seconds=1.0)
    await retried_for(10.0, upstream, RetryPolicy(retries=1, first_backoff=0.0))
    assert upstream.granted == [10.0, 9.0]


class Reporting(Hanging):
    """The same, with a sign of life every second."""

    async def wait(self, attempt: Attempt) -> None:
        for _ in range(int(self.seconds)):
            attempt.alive()
            await asyncio.sleep(1.0)


@in_virtual_time
async def test_silent_attempt_is_given_up_and_a_live_one_is_not() -> None:
    class Starting(Hanging):
        async def wait(self, attempt: Attempt) -> None:
            await asyncio.sleep(1.0)  # in a queue
            attempt.alive()
            await super().wait(attempt)

    policy = RetryPolicy(retries=1, patience=2.0, first_backoff=0.0)
    starting, reporting = Starting(attempts=2), Reporting(attempts=2, seconds=9.0)
    with entered(with_seconds(10.0)):
        await retried(starting, policy, is_transient=transient)
        assert starting.spans == [(0.0, 3.0), (3.0, 4.0)]
    with entered(with_seconds(10.0)):
        await retried(reporting, policy, is_transient=transient)
        assert reporting.spans == [(4.0, 13.0)], "one attempt"


@in_virtual_time
async def test_slow_attempt_goes_on_without_time_for_another() -> None:
    hanging = Hanging(attempts=2, seconds=9.5)
    policy = RetryPolicy(retries=1, viable_attempt=3.0)
    with entered(with_seconds(10.0)):
        assert await retried(hanging, policy, is_transient=transient) == "answer"
    assert hanging.spans == [(0.0, 9.5)]


@in_virtual_time
async def test_slow_attempt_goes_on_without_retry_budget() -> None:
    budget = RetryBudget(virtual_time.clock(), floor=0.0)
    hanging = Hanging(attempts=2, seconds=9.5)
    told: list[Retry] = []
    with entered(with_seconds(10.0)):
        await retried(hanging, RetryPolicy(retries=1), is_transient=transient, budget=budget, tell=told.append)
    assert hanging.spans == [(0.0, 9.5)]
    assert [(retry.why, retry.refused) for retry in told] == [("HUNG", "budget")]


@in_virtual_time
async def test_settled_attempt_is_not_given_up() -> None:
    class Settling(Hanging):
        async def wait(self, attempt: Attempt) -> None:
            attempt.settled()
            attempt.alive()
            await super().wait(attempt)

    settling = Settling(attempts=2, seconds=9.5)
    with entered(with_seconds(10.0)):
        await retried(settling, RetryPolicy(retries=1, patience=0.1), is_transient=transient)
    assert settling.spans == [(0.0, 9.5)]


@in_virtual_time
async def test_only_attempt_is_given_up_for_a_ready_fallback() -> None:
    hanging = Hanging(attempts=9, seconds=9.9)
    policy = RetryPolicy(retries=0)
    with entered(with_seconds(10.0)), pytest.raises(AttemptHung):
        await retried(hanging, policy, is_transient=transient, fallback_ready=lambda left: left >= 1.0)
    assert hanging.spans == [(0.0, 8.0)]
    with entered(with_seconds(10.0)):
        await retried(hanging, policy, is_transient=transient, fallback_ready=lambda left: left >= 2.5)
    assert hanging.spans[1:] == [pytest.approx((8.0, 17.9))]


@in_virtual_time
async def test_stubborn_attempt_is_cancelled_until_it_ends() -> None:
    async def stubborn(attempt: Attempt) -> str:
        if not ended:
            for _ in range(3):
                try:
                    await asyncio.sleep(3600.0)
                except asyncio.CancelledError:
                    ended.append(now())
        return "answer"

    ended: list[float] = []
    with entered(with_seconds(10.0)):
        assert await retried(stubborn, RetryPolicy(retries=1), is_transient=transient) == "answer"
    assert ended == pytest.approx([8.0, 8.05, 8.1])
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


@in_virtual_time
async def test_outside_cancel_wins_while_an_attempt_is_given_up() -> None:
    async def closing_slowly(attempt: Attempt) -> None:
        try:
            await asyncio.sleep(3600.0)
        finally:
            await asyncio.shield(asyncio.sleep(1.0))

    async def call() -> None:
        with entered(with_seconds(10.0)):
            await retried(closing_slowly, RetryPolicy(retries=1), is_transient=transient)

    task = asyncio.create_task(call())
    await asyncio.sleep(8.0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


@in_virtual_time
async def test_silence_timer_needs_no_current_context() -> None:
    asked: list[float] = []

    def better() -> bool:
        asked.append(now())
        return True

    async def silent() -> None:
        async with SilenceTimeout(better) as patience:
            patience.lasts(1.0)
            patience.is_endless()
            patience.context = current().tightened_after(2.0)
            Context().run(patience.set_timer, asyncio.get_running_loop())  # as the coarse timers do
            await asyncio.sleep(5.0)

    with entered(with_seconds(10.0)), pytest.raises(AttemptHung):
        await silent()
    assert asked == [2.0]


@in_virtual_time
async def test_foreign_deadline_spent_is_not_retried() -> None:
    upstream = Upstream(DeadlineSpent("not this attempt's"))
    with pytest.raises(DeadlineSpent, match="not this attempt's"):
        await retried_for(10.0, upstream, RetryPolicy(retries=3))
    assert len(upstream.started) == 1


@in_virtual_time
async def test_permanent_failure_is_raised_at_once() -> None:
    upstream = Upstream(LookupError("no such tool"))
    with pytest.raises(LookupError, match="no such tool"):
        await retried_for(10.0, upstream, RetryPolicy(retries=3))
    assert len(upstream.started) == 1


@in_virtual_time
async def test_only_attempt_gets_all_the_time_and_raises_its_error() -> None:
    upstream = Upstream(UpstreamFailed("reset"))
    with pytest.raises(UpstreamFailed):
        await retried_for(10.0, upstream, RetryPolicy(retries=0))
    assert (upstream.started, upstream.granted) == ([0.0], [10.0])


@in_virtual_time
async def test_last_error_is_raised_after_the_last_retry() -> None:
    upstream = Upstream(UpstreamFailed("first"), UpstreamFailed("second"), UpstreamFailed("third"))
    with pytest.raises(UpstreamFailed, match="third"):
        await retried_for(10.0, upstream, RetryPolicy(retries=2))
    assert len(upstream.started) == 3


@pytest.mark.parametrize(("seconds", "attempts"), [(0.56, 1), (0.60, 2)])
@in_virtual_time
async def test_retry_needs_time_for_backoff_and_a_viable_attempt(seconds: float, attempts: int) -> None:
    upstream = Upstream(*(UpstreamFailed(f"number {number}") for number in (1, 2)), seconds=0.42)
    policy = RetryPolicy(retries=1, viable_attempt=0.05, first_backoff=0.1)
    with pytest.raises(UpstreamFailed, match=f"number {attempts}"):
        await retried_for(seconds, upstream, policy)
    assert len(upstream.started) == attempts


@in_virtual_time
async def test_fitting_retry_after_is_honoured() -> None:
    upstream = Upstream(Shed("busy", retry_after=3.0))
    assert await retried_for(10.0, upstream, RetryPolicy(retries=1)) == "answer"
    assert upstream.started == [0.0, 3.0]


@in_virtual_time
async def test_too_long_retry_after_raises_the_servers_error() -> None:
    upstream = Upstream(Shed("busy", retry_after=30.0))
    with pytest.raises(Shed, match="busy"):
        await retried_for(10.0, upstream, RetryPolicy(retries=5))
    assert now() == 0.0


@in_virtual_time
async def test_backoffs_are_spent_in_the_waiting_context() -> None:
    waits: list[tuple[float, float]] = []

    @contextmanager
    def waiting() -> Iterator[None]:
        began = now()
        yield
        waits.append((began, now()))

    upstream = Upstream(UpstreamFailed("reset"), UpstreamFailed("reset"), seconds=1.0)
    with entered(with_seconds(60.0)):
        await retried(
            upstream,
            RetryPolicy(retries=2, first_backoff=0.5),
            is_transient=transient,
            waiting=waiting,
            draw=lambda: 1.0,
        )
    assert waits == [(1.0, 1.5), (2.5, 3.5)]


@in_virtual_time
async def test_each_retry_made_or_refused_is_reported() -> None:
    async def told(policy: RetryPolicy, *errors: Exception, budget: RetryBudget | None = None) -> list[Retry]:
        retries: list[Retry] = []
        with entered(with_seconds(10.0)), suppress(UpstreamFailed, Shed):
            await retried(
                Upstream(*errors),
                policy,
                is_transient=transient,
                budget=budget,
                tell=retries.append,
                draw=lambda: 1.0,
            )
        return retries

    reset, wait = UpstreamFailed("reset"), Shed("busy", retry_after=30.0)
    one = RetryPolicy(retries=1)
    assert await told(one, reset) == [Retry(1, "UPSTREAM_FAILED", 0.1, "")]
    assert await told(one, reset, reset) == [
        Retry(1, "UPSTREAM_FAILED", 0.1, ""),
        Retry(2, "UPSTREAM_FAILED", 0.2, "limit"),
    ]
    assert await told(one, wait) == [Retry(1, "SHED", 30.0, "retry_after")]
    assert await told(RetryPolicy(1, viable_attempt=20.0), reset) == [Retry(1, "UPSTREAM_FAILED", 0.1, "time")]
    empty = RetryBudget(virtual_time.clock(), floor=0.0)
    assert await told(one, reset, budget=empty) == [Retry(1, "UPSTREAM_FAILED", 0.1, "budget")]
    assert await told(one) == []


@in_virtual_time
async def test_outage_costs_1_1_viable_attempts_a_call() -> None:
    budget = RetryBudget(virtual_time.clock())
    attempts: list[float] = []

    async def down(attempt: Attempt) -> None:
        attempts.append(current().remaining)
        await asyncio.sleep(0.02)
        raise UpstreamFailed("down")

    async def call() -> None:
        context = with_seconds(1.0)
        with entered(context), suppress(UpstreamFailed):
            await retried(down, RetryPolicy(retries=2, viable_attempt=0.05), is_transient=transient, budget=budget)
        assert not context.is_expired

    calls = 2000
    async with asyncio.TaskGroup() as group:
        for _ in range(calls):
            group.create_task(call())
            await asyncio.sleep(0.01)
    assert 1.05 < len(attempts) / calls <= 1.1
    assert min(attempts) >= 0.05


@in_virtual_time
async def test_helpful_retries_may_be_a_fifth_of_the_calls() -> None:
    clock = virtual_time.clock()
    budget = RetryBudget(clock)
    made = 0
    for _ in range(2000):
        budget.call()
        if budget.take():
            made += 1
            budget.helped()
        clock.advance(0.01)
    assert made / 2000 == pytest.approx(0.2, abs=0.01)


@in_virtual_time
async def test_few_calls_have_three_retries_refilled_over_time() -> None:
    clock = virtual_time.clock()
    budget = RetryBudget(clock)
    budget.call()
    assert [budget.take() for _ in range(4)] == [True, True, True, False]
    clock.advance(10.0)
    assert [budget.take() for _ in range(3)] == [True, False, False]
    clock.advance(60.0)
    assert [budget.take() for _ in range(4)] == [True, True, True, False]


@given(st.integers(1, 60), st.floats(0.0, 1.0))
def test_backoff_stays_within_its_ceiling(retry: int, draw: float) -> None:
    policy = RetryPolicy(retries=60, first_backoff=0.1, longest_backoff=5.0)
    assert 0.0 <= policy.backoff(retry, None, draw) <= min(5.0, 0.1 * 2 ** (retry - 1))
