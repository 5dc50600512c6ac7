"""Attempts fit into what remains, or are not made."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.virtual import in_virtual_time, now, with_seconds

from deadlinemesh.deadline import RetryPolicy, current, entered, retried
from deadlinemesh.errors import DeadlineSpent, Shed, UpstreamFailed


class Upstream:
    """Fails with each of `errors` in turn, then answers. Each attempt takes `seconds`."""

    def __init__(self, *errors: Exception, seconds: float = 0.0) -> None:
        self.errors = list(errors)
        self.seconds = seconds
        self.started: list[float] = []
        self.granted: list[float] = []

    async def __call__(self) -> str:
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
async def test_a_success_is_not_repeated() -> None:
    upstream = Upstream()
    assert await retried_for(10.0, upstream, RetryPolicy(retries=3)) == "answer"
    assert upstream.started == [0.0]


@in_virtual_time
async def test_transient_failures_are_tried_again_after_a_doubling_backoff() -> None:
    upstream = Upstream(*(UpstreamFailed("reset") for _ in range(3)))
    assert await retried_for(10.0, upstream, RetryPolicy(retries=3, first_backoff=0.1)) == "answer"
    assert upstream.started == pytest.approx([0.0, 0.1, 0.3, 0.7])


@in_virtual_time
async def test_an_attempt_that_may_be_followed_by_another_gets_80_percent_and_the_last_gets_all() -> None:
    upstream = Upstream(UpstreamFailed("reset"), UpstreamFailed("reset"), seconds=1.0)
    await retried_for(10.0, upstream, RetryPolicy(retries=2, first_backoff=1.0), draw=lambda: 0.0)
    assert upstream.granted == pytest.approx([10.0 * 0.8, 9.0 * 0.8, 8.0])


@in_virtual_time
async def test_an_attempt_that_used_up_its_share_is_cut_and_tried_again() -> None:
    started: list[float] = []

    async def hangs_once() -> str:
        started.append(now())
        if len(started) == 1:
            await asyncio.sleep(100.0)
        return "answer"

    policy = RetryPolicy(retries=1, first_backoff=0.5)
    with entered(with_seconds(10.0)):
        assert await retried(hangs_once, policy, is_transient=transient, draw=lambda: 1.0) == "answer"
    assert started == pytest.approx([0.0, 8.5])


@in_virtual_time
async def test_a_deadline_spent_by_somebody_else_is_not_tried_again() -> None:
    upstream = Upstream(DeadlineSpent("not this attempt's"))
    with pytest.raises(DeadlineSpent, match="not this attempt's"):
        await retried_for(10.0, upstream, RetryPolicy(retries=3))
    assert len(upstream.started) == 1


@in_virtual_time
async def test_a_failure_that_is_not_transient_goes_out_at_once() -> None:
    upstream = Upstream(LookupError("no such tool"))
    with pytest.raises(LookupError, match="no such tool"):
        await retried_for(10.0, upstream, RetryPolicy(retries=3))
    assert len(upstream.started) == 1


@in_virtual_time
async def test_without_retries_the_only_attempt_gets_all_the_time_and_its_error_goes_out() -> None:
    upstream = Upstream(UpstreamFailed("reset"))
    with pytest.raises(UpstreamFailed):
        await retried_for(10.0, upstream, RetryPolicy(retries=0))
    assert (upstream.started, upstream.granted) == ([0.0], [10.0])


@in_virtual_time
async def test_when_the_retries_are_used_up_the_last_error_goes_out() -> None:
    upstream = Upstream(UpstreamFailed("first"), UpstreamFailed("second"), UpstreamFailed("third"))
    with pytest.raises(UpstreamFailed, match="third"):
        await retried_for(10.0, upstream, RetryPolicy(retries=2))
    assert len(upstream.started) == 3


@pytest.mark.parametrize(("seconds", "attempts"), [(0.56, 1), (0.60, 2)])
@in_virtual_time
async def test_no_attempt_starts_unless_the_backoff_and_a_viable_attempt_fit(seconds: float, attempts: int) -> None:
    upstream = Upstream(*(UpstreamFailed(f"number {number}") for number in (1, 2)), seconds=0.42)
    policy = RetryPolicy(retries=1, viable_attempt=0.05, first_backoff=0.1)
    with pytest.raises(UpstreamFailed, match=f"number {attempts}"):
        await retried_for(seconds, upstream, policy)
    assert len(upstream.started) == attempts


@in_virtual_time
async def test_a_retry_after_that_fits_is_honoured() -> None:
    upstream = Upstream(Shed("busy", retry_after=3.0))
    assert await retried_for(10.0, upstream, RetryPolicy(retries=1)) == "answer"
    assert upstream.started == [0.0, 3.0]


@in_virtual_time
async def test_a_retry_after_that_does_not_fit_ends_the_tries_at_once_with_the_servers_error() -> None:
    upstream = Upstream(Shed("busy", retry_after=30.0))
    with pytest.raises(Shed, match="busy"):
        await retried_for(10.0, upstream, RetryPolicy(retries=5))
    assert now() == 0.0


@in_virtual_time
async def test_each_backoff_is_spent_inside_what_the_caller_gave_for_it() -> None:
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


@given(st.integers(1, 60), st.floats(0.0, 1.0))
def test_a_backoff_stays_between_nothing_and_its_ceiling(retry: int, draw: float) -> None:
    policy = RetryPolicy(retries=60, first_backoff=0.1, longest_backoff=5.0)
    assert 0.0 <= policy.backoff(retry, None, draw) <= min(5.0, 0.1 * 2 ** (retry - 1))
