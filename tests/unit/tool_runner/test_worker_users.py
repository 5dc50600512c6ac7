"""Users of worker processes."""

from __future__ import annotations

from typing import Any

import pytest

from deadlinemesh.tool_runner.workers import keeper_main


def confinement(monkeypatch: pytest.MonkeyPatch, uids: tuple[int, int]) -> keeper_main._Confinement:
    monkeypatch.setattr(keeper_main, "usable_by", lambda *_: True)
    monkeypatch.setattr(keeper_main, "bound_capabilities", lambda: None)
    return keeper_main._Confinement(None, uids)


def users(of: keeper_main._Confinement) -> Any:
    return of._taken


def test_each_worker_has_a_user_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    many = confinement(monkeypatch, (1000, 1009))
    for number in range(10):
        many.admit(number)
    assert sorted(users(many).values()) == list(range(1000, 1010))
    many.dismiss(3)
    freed = set(range(1000, 1010)) - set(users(many).values())
    many.admit(10)
    assert {users(many)[10]} == freed


@pytest.mark.parametrize(("first", "last"), [(1000, 1000), (1000, 1002)])
def test_more_workers_than_users_share_them(monkeypatch: pytest.MonkeyPatch, first: int, last: int) -> None:
    few = confinement(monkeypatch, (first, last))
    for number in range(9):
        few.admit(number)
    assert set(users(few).values()) == set(range(first, last + 1))
