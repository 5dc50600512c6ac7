"""Whose budget was eaten by whom, as lanes: what is counted and what is drawn."""

from __future__ import annotations

import pytest

from deadlinemesh.demo.lanes import Act, Lane, drawn


def starved() -> Lane:
    """A's run: a model turn, then a wait for B until after its deadline."""
    lane = Lane("acme", "CRM", granted=6.0, starts_at=1.0)
    lane.enter(0.0, "model")
    lane.enter(1.0, "wait", "bolt")
    lane.leave(8.0)
    return lane


def served() -> Lane:
    lane = Lane("acme", "CRM", granted=6.0)
    lane.enter(0.0, "model")
    lane.enter(1.0, "tool")
    lane.leave(2.0)
    lane.answered_at = 2.0
    return lane


def test_a_wait_is_charged_to_who_holds_what_is_waited_for_and_not_beyond_the_budget() -> None:
    assert starved().eaten() == {"bolt": 5.0}
    assert Act("naive", [starved()]).eaten("bolt") == {"acme": 5.0}


def test_a_wait_that_is_still_on_counts_to_the_deadline() -> None:
    lane = Lane("acme", "CRM", granted=6.0)
    lane.enter(2.0, "wait", "bolt")
    assert lane.eaten() == {"bolt": 4.0}


def test_the_same_again_makes_no_new_piece() -> None:
    lane = Lane("acme", "CRM", granted=6.0)
    lane.enter(0.0, "wait", "bolt")
    lane.enter(1.0, "wait", "bolt")
    lane.enter(2.0, "wait", "cora")
    assert [(piece.start, piece.end, piece.by) for piece in lane.pieces] == [(0.0, 2.0, "bolt"), (2.0, None, "cora")]


def test_work_after_the_deadline_is_told() -> None:
    assert (starved().outlived(), served().outlived()) == (2.0, 0.0)
    assert starved().as_json() == {
        "tenant": "acme",
        "about": "CRM",
        "granted_ms": 6000.0,
        "answered_in_time": False,
        "answered_ms": None,
        "partial": False,
        "eaten_ms": {"bolt": 5000.0},
        "alive_after_deadline_ms": 2000.0,
    }


@pytest.mark.parametrize(
    ("lane", "verdict"), [(starved(), "no answer; B ate 5.0 s"), (served(), "answered after 2.0 s")]
)
def test_the_verdict_is_what_its_user_says(lane: Lane, verdict: str) -> None:
    assert lane.verdict() == verdict


def test_what_a_tenant_waits_for_itself_is_eaten_by_nobody() -> None:
    lane = Lane("bolt", "quotes", granted=6.0)
    lane.enter(0.0, "wait", "bolt")
    assert lane.verdict() == "no answer"
    assert lane.as_json()["eaten_ms"] == {}


def test_a_lane_shows_model_wait_deadline_and_what_outlives_it() -> None:
    title, line, legend = drawn(Act("naive", [starved()]), 10.0, 27 + 40 + 36, ascii_only=True)
    assert title.plain == "naive"
    # Ten seconds in forty cells: begun at 1 s, a second of the model, five of waiting, the deadline at 7 s, then until 9 s.
    assert line.plain[27:67] == "    ....BBBBBBBBBBBBBBBBBBB|xxxxxxxx    "
    assert line.plain.startswith("A CRM")
    assert "waits for what that tenant holds" in legend.plain


def test_nothing_is_drawn_of_what_is_still_to_come() -> None:
    lane = Lane("acme", "CRM", granted=6.0)
    lane.enter(0.0, "model")
    _, line, _ = drawn(Act("meshed", [lane]), 10.0, 27 + 40 + 36, now=1.0, ascii_only=True)
    assert line.plain[27:67] == "....                   |                "
    assert "answer" not in line.plain
