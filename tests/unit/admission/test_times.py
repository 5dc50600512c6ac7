"""What recent work took is learned by itself, and forgotten when it changes."""

from __future__ import annotations

import pytest

from deadlinemesh.admission import RecentTimes


def times(*seconds: float) -> RecentTimes:
    recent = RecentTimes()
    for one in seconds:
        recent.add(one)
    return recent


def test_nothing_is_known_of_work_that_was_never_seen() -> None:
    assert (times().quantile(0.5), times().mean, len(times())) == (0.0, 0.0, 0)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (0.1, 2.0), (0.5, 6.0), (0.99, 10.0), (1.0, 10.0)])
def test_a_quantile_is_one_of_the_durations_that_were_seen(share: float, expected: float) -> None:
    assert times(*(float(one) for one in (3, 1, 2, 7, 5, 4, 6, 9, 8, 10))).quantile(share) == expected


def test_only_the_last_sixty_four_are_remembered() -> None:
    recent = times(*[9.0, 1.0] * 100)
    recent.add(9.0)
    assert len(recent) == 64


@pytest.mark.parametrize(("before", "after"), [(0.1, 5.0), (5.0, 0.1)])
def test_eight_in_a_row_beyond_all_before_them_are_a_change_and_the_old_is_forgotten(
    before: float, after: float
) -> None:
    recent = times(*[before] * 40, *[after] * 7)
    assert recent.quantile(0.5) == before
    recent.add(after)
    assert (recent.quantile(0.0), recent.quantile(1.0), recent.mean) == (after, after, pytest.approx(after))


def test_a_change_is_also_told_where_there_were_fewer_before_it() -> None:
    assert times(*[3.0] * 5, *[0.2] * 8).quantile(1.0) == 0.2
    assert times(*[3.0] * 3, *[0.2] * 8).quantile(1.0) == 3.0


def test_one_outlier_changes_nothing() -> None:
    assert times(*[0.1] * 20, 30.0, *[0.1] * 20).quantile(0.5) == 0.1


def test_cut_work_counts_where_it_had_taken_longer_than_is_usual() -> None:
    recent = times(*[1.0] * 10)
    recent.add_cut(0.5)
    assert len(recent) == 10
    recent.add_cut(3.0)
    assert recent.quantile(1.0) == 3.0


def test_where_all_is_cut_that_is_all_that_is_known() -> None:
    recent = times()
    recent.add_cut(2.0)
    assert recent.mean == 2.0
