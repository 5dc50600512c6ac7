"""What is left by a dead worker holds up that worker's end and no other's, as far as it can be told apart."""

from __future__ import annotations

from deadlinemesh.tool_runner.workers.inherited import SHARED_FOR, Leftovers


def test_what_only_one_worker_can_have_left_holds_up_its_end_for_as_long_as_it_lives() -> None:
    left = Leftovers()
    left.add(100, {1}, 0.0)
    assert left.next_release_at is None
    assert left.release(1e9) == []
    assert left.hold(1)
    assert not left.hold(2)
    assert left.gone(100) == {1}
    assert not left.hold(1)


def test_what_several_may_have_left_holds_up_each_of_them_for_a_while_and_is_released_once() -> None:
    left = Leftovers()
    left.add(100, {1, 2}, 5.0)
    assert left.next_release_at == 5.0 + SHARED_FOR
    assert left.release(5.0 + SHARED_FOR / 2) == []
    assert left.hold(1)
    assert left.hold(2)
    assert left.release(5.0 + SHARED_FOR) == [100]
    assert left.release(9.0) == []
    assert not left.hold(1)
    assert not left.hold(2)
    assert left.next_release_at is None


def test_who_may_have_left_something_may_have_left_more_until_it_is_gone() -> None:
    left = Leftovers()
    left.add(100, {1, 2}, 0.0)
    left.add(101, {3}, 0.0)
    left.release(SHARED_FOR)
    assert left.owners == {1, 2, 3}
    assert left.gone(100) == {1, 2}
    assert left.owners == {3}


def test_what_has_never_been_left_is_nobodys() -> None:
    left = Leftovers()
    assert left.gone(100) == frozenset()
    assert left.owners == frozenset()
    assert 100 not in left
