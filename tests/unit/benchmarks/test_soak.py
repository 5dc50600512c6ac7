"""The pure parts of `dmesh bench soak`: what it lets pass and what not."""

from __future__ import annotations

import pytest
from benchmarks.mesh import HOPS
from benchmarks.soak.bench import _bars
from benchmarks.soak.streams import TENANTS, policy

from deadlinemesh.identity.keys import hash_key, new_key
from deadlinemesh.policy import Policy

FLAT = {"rss_mb": 100.0, "fds": 14, "tasks": 9, "scopes": 0, "slots": 0, "waiting": 0}


def broken(**last: float) -> list[str]:
    """The bars that do not hold where one service ends so."""
    first = {hop: dict(FLAT) for hop in HOPS}
    ended = {**first, "orchestrator": {**FLAT, **last}}
    return [one["what"] for one in _bars(first, ended, 0.0) if not one["holds"]]


def test_what_stays_as_it_was_after_the_warm_up_holds() -> None:
    assert broken() == []
    assert broken(rss_mb=109.0, fds=15, tasks=10) == []


@pytest.mark.parametrize(
    ("last", "what"),
    [
        ({"rss_mb": 111.0}, "orchestrator: growth of memory after the warm-up, %"),
        ({"fds": 16}, "orchestrator: more file descriptors"),
        ({"tasks": 11}, "orchestrator: more tasks"),
        ({"scopes": 1}, "orchestrator: scopes at the end"),
        ({"slots": 1}, "orchestrator: slots at the end"),
        ({"waiting": 1}, "orchestrator: waiting at the end"),
    ],
)
def test_what_is_left_breaks_its_bar(last: dict[str, float], what: str) -> None:
    assert broken(**last) == [what]


def test_a_load_that_is_not_what_it_should_be_is_told() -> None:
    flat = {hop: dict(FLAT) for hop in HOPS}
    assert not _bars(flat, flat, 0.06)[-1]["holds"]


def test_the_meshs_policy_is_one() -> None:
    tenants = {name: {"tier": "free", "api_keys": [hash_key(new_key(name))]} for name in TENANTS}
    assert Policy.model_validate({**policy(), "tenants": tenants}).limits.shortest_run == 0.02
