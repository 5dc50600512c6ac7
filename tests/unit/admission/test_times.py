"""Recent service times are learned, and forgotten once they change."""

from __future__ import annotations

import pytest

from deadlinemesh.admission import RecentTimes


def times(*seconds: float) -> RecentTimes:
    recent = RecentTimes()
    for one in seconds:
        recent.add(one)
    return recent


def test_no_times_are_known_at_first() -> None:
    assert (times().quantile(0.5), times().mean, len(times())) == (0.0, 0.0, 0)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (0.1, 2.0), (0.5, 6.0), (0.99, 10.0), (1.0, 10.0)])
def test_quantile_is_an_observed_duration(share: float, expected: float) -> None:
    assert times(*(float(one) for one in (3, 1, 2, 7, 5, 4, 6, 9, 8, 10))).quantile(share) == expected


def test_only_the_last_64_times_are_kept() -> None:
    recent = times(*[9.0, 1.0] * 100)
    recent.add(9.0)
    assert len(recent) == 64


@pytest.mark.parametrize(("before", "after"), [(0.1, 5.0), (5.0, 0.1)])
def test_eight_times_beyond_all_others_replace_them(before: float, after: float) -> None:
    recent = times(*[before] * 40, *[after] * 7)
    assert recent.quantile(0.5) == before
    recent.add(after)
    assert (recent.quantile(0.0), recent.quantile(1.0), recent.mean) == (after, after, pytest.approx(after))


def test_change_shows_after_five_earlier_times_not_after_three() -> None:
    assert times(*[3.0] * 5, *[0.2] * 8).quantile(1.0) == 0.2
    assert times(*[3.0] * 3, *[0.2] * 8).quantile(1.0) == 3.0


def test_one_outlier_changes_nothing() -> None:
    assert times(*[0.1] * 20, 30.0, *[0.1] * 20).quantile(0.5) == 0.1


def test_cut_work_counts_only_if_longer_than_usual() -> None:
    recent = times(*[1.0] * 10)
    recent.add_cut(0.5)
    assert len(recent) == 10
    recent.add_cut(3.0)
    assert recent.quantile(1.0) == 3.0


def test_cut_work_counts_if_no_other_is_known() -> None:
    recent = times()
    recent.add_cut(2.0)
    assert recent.mean == 2.0
