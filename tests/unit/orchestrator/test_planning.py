"""From a tenant's order to its agent's assignment."""

from __future__ import annotations

import pytest

from deadlinemesh.errors import InvalidRequest, NotFound, Violations
from deadlinemesh.identity.callers import Tenant
from deadlinemesh.orchestrator.assignment import Assignment
from deadlinemesh.orchestrator.catalog import Listed
from deadlinemesh.orchestrator.planning import MAX_ITEMS, RunOrder, assignment_of, check_order, model_of
from deadlinemesh.policy import Policy
from deadlinemesh.vocabulary import Message, Role, ToolCall, ToolSpec

POLICY = Policy.model_validate(
    {
        "tiers": {"free": {"run_budget": "30s", "iterations": 2, "tool_retries": 1}},
        "tenants": {"acme": {"tier": "free", "api_keys": ["sha256:" + "0" * 64], "models": ["small", "large"]}},
        "models": {
            "small": {"provider": "scripted", "fallback": "large", "longest_result": 500},
            "large": {"provider": "scripted"},
            "other": {"provider": "scripted"},
        },
        "instructions": "Be brief.",
    }
)
ACME = Tenant.of(POLICY, "acme")
LOOK, PAY = ToolSpec("look", "Look.", {}, True), ToolSpec("pay", "Pay.", {})
LISTED = Listed((LOOK, PAY), now=True)
SYSTEM, USER = Message(Role.SYSTEM, "Talk like a pirate."), Message(Role.USER, "hello")


def planned(listed: Listed = LISTED, **order: object) -> Assignment:
    return assignment_of(RunOrder("go", **order), ACME, POLICY, listed)  # type: ignore[arg-type]  # as the test names them


def test_order_without_wishes_gets_what_policy_says() -> None:
    assignment = planned()
    assert (assignment.model, assignment.fallbacks, assignment.results.longest) == ("small", ("large",), 500)
    assert (assignment.tools, assignment.tool_retries) == ((LOOK, PAY), 1)
    assert assignment.messages == (Message(Role.SYSTEM, "Be brief."), Message(Role.USER, "go"))


@pytest.mark.parametrize(("wanted", "granted"), [(0, 2), (1, 1), (2, 2), (50, 2)])
def test_iterations_never_exceed_the_tier(wanted: int, granted: int) -> None:
    assert planned(max_iterations=wanted).max_iterations == granted


def test_model_of_another_tenant_is_not_found() -> None:
    with pytest.raises(NotFound, match="'other' is unknown or not yours: one of small, large"):
        model_of(RunOrder("go", model="other"), ACME)
    with pytest.raises(NotFound, match="model"):
        planned(model="nobody's")
    assert planned(model="large").model == "large"


def test_unknown_tool_is_not_found_with_its_place() -> None:
    with pytest.raises(NotFound, match=r"tools\[1\]: 'hack' is unknown or not yours: one of look, pay"):
        planned(tools=("look", "hack"))
    assert planned(tools=("pay", "pay")).tools == (PAY,)


def test_old_listing_refuses_no_tool() -> None:
    assert planned(Listed((LOOK,), now=False), tools=("look", "new")).tools == (LOOK,)


def test_instructions_replace_those_of_an_earlier_run() -> None:
    messages = planned(instructions="Rhyme.", history=(SYSTEM, USER)).messages
    assert messages == (Message(Role.SYSTEM, "Rhyme."), USER, Message(Role.USER, "go"))


def test_system_message_of_the_history_stays() -> None:
    assert planned(history=(SYSTEM, USER)).messages == (SYSTEM, USER, Message(Role.USER, "go"))


def refused(order: RunOrder, found: Violations | None = None) -> list[str]:
    with pytest.raises(InvalidRequest) as raised:
        check_order(order, found or Violations(), 1000)
    return [violation.field for violation in raised.value.violations]


def test_each_violation_of_an_order_is_named() -> None:
    order = RunOrder(
        " ",
        request_id="x" * 129,
        tools=("look",) * (MAX_ITEMS + 1),
        history=(Message(Role.ASSISTANT, "", (ToolCall("c1", "look", "{}"),)),),
        max_iterations=-1,
        max_output_tokens=-1,
    )
    assert refused(order) == [
        *("prompt", "request_id", "limits.max_iterations", "limits.max_output_tokens", "tools", "history[0]"),
    ]


def test_violations_found_before_come_first() -> None:
    found = Violations()
    found.add("history", "must be shorter")
    assert refused(RunOrder(""), found) == ["history", "prompt"]


def test_valid_order_passes() -> None:
    check_order(RunOrder("go", history=(USER,)), Violations(), 1000)
