"""What a reload takes away is kept for as long as runs that began with it may go on."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.virtual import in_virtual_time, with_seconds

from deadlinemesh.deadline import entered
from deadlinemesh.policy import Past, Policy
from deadlinemesh.policy.past import MOST_KEPT, takes_away
from deadlinemesh.testing import virtual_time

TENANT: dict[str, Any] = {"tier": "free", "api_keys": ["sha256:" + "0" * 64], "models": ["one"], "tools": ["calculate"]}
SAID: dict[str, Any] = {
    "tiers": {"free": {"run_budget": "30s", "iterations": 2}, "other": {"run_budget": "60s", "iterations": 2}},
    "tenants": {"acme": TENANT},
    "models": {"one": {"provider": "scripted"}, "two": {"provider": "scripted"}},
    "tools": {"http": {"look": {"url": "http://127.0.0.1/", "description": "Looks."}}},
}
WAS = Policy.model_validate(SAID)


def with_acme(**changes: Any) -> Policy:
    return Policy.model_validate(SAID | {"tenants": {"acme": TENANT | changes}})


@pytest.mark.parametrize(
    ("wanted", "taken"),
    [
        (WAS, False),
        (with_acme(models=["two", "one"]), False),
        (with_acme(models=[]), False),
        (with_acme(tools=["calculate", "look"]), False),
        (with_acme(tools=[]), False),
        (with_acme(api_keys=["sha256:" + "1" * 64]), False),
        (with_acme(models=["two"]), True),
        (with_acme(tools=["look"]), True),
        (Policy.model_validate(SAID | {"tenants": {"bolt": TENANT}}), True),
        (Policy.model_validate(SAID | {"models": {"one": {"provider": "scripted"}}}), True),
        (Policy.model_validate(SAID | {"tiers": {"free": {"run_budget": "30s", "iterations": 2}}}), True),
        (Policy.model_validate(SAID | {"tools": {}}), True),
        (Policy.model_validate(SAID | {"tools": SAID["tools"] | {"modules": []}}), True),
    ],
)
def test_what_is_taken_away_is_noticed(wanted: Policy, taken: bool) -> None:
    assert takes_away(WAS, wanted) is taken


def test_a_tenant_with_all_tools_is_narrowed_by_a_list() -> None:
    assert takes_away(with_acme(tools=[]), WAS)


@in_virtual_time
async def test_what_was_taken_serves_until_the_longest_budget() -> None:
    past: Past[str] = Past(virtual_time.clock())
    assert past.keep("first", WAS, with_acme(models=["two"])) == 60.0
    assert past.keep("same", WAS, WAS) == 0.0
    with entered(with_seconds(60.0)):
        assert list(past) == ["first"]
    with entered(with_seconds(60.1)):
        assert list(past) == []
    virtual_time.clock().advance(60.0)
    with entered(with_seconds(0.0)):
        assert list(past) == []


@in_virtual_time
async def test_the_newest_of_many_reloads_are_kept() -> None:
    past: Past[int] = Past(virtual_time.clock())
    for number in range(MOST_KEPT + 3):
        past.keep(number, WAS, with_acme(models=["two"]))
    with entered(with_seconds(1.0)):
        assert list(past) == list(reversed(range(3, MOST_KEPT + 3)))


@in_virtual_time
async def test_a_tier_that_is_gone_keeps_its_share() -> None:
    past: Past[str] = Past(virtual_time.clock())
    wanted = Policy.model_validate(SAID | {"tiers": {"free": {"run_budget": "30s", "iterations": 2, "weight": 4}}})
    past.keep("first", WAS, wanted)
    shares = past.shares(wanted, by_model_queue=True)
    assert (shares["free"].weight, shares["other"]) == (4, WAS.shares(by_model_queue=True)["other"])
    virtual_time.clock().advance(60.0)
    assert "other" not in past.shares(wanted)
