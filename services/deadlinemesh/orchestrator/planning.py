"""Planning: from a tenant's order to its agent's assignment. Pure: no clock, no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deadlinemesh.errors import InvalidRequest, NotFound, Violation, Violations, choices, shown
from deadlinemesh.identity.callers import Tenant
from deadlinemesh.orchestrator.assignment import Assignment
from deadlinemesh.orchestrator.catalog import Listed
from deadlinemesh.orchestrator.shortening import Bounds
from deadlinemesh.policy import Policy
from deadlinemesh.vocabulary import Message, Role, ToolSpec, history_violations

__all__ = ["MAX_ITEMS", "RunOrder", "assignment_of", "check_order", "model_of"]

MAX_ITEMS = 4096
"""Messages that a history may have; also its tool calls, and the tools of an order. Each takes the
event loop some microseconds."""

_MAX_REQUEST_ID = 128
"""Characters of a request id."""


@dataclass(frozen=True, slots=True)
class RunOrder:
    """A tenant's order for a run. Empty texts and zeros leave the choice to policy."""

    prompt: str
    request_id: str = ""
    instructions: str = ""
    model: str = ""
    tools: tuple[str, ...] = ()
    """Names of the tools that the agent may call. Empty for all tools of the tenant."""
    history: tuple[Message, ...] = ()
    max_iterations: int = 0
    max_output_tokens: int = 0


def check_order(order: RunOrder, found: Violations, longest_arguments: int) -> None:
    """Raise InvalidRequest if `order` has violations, or if `found` has some already.

    The error has all of them. A call's arguments may have `longest_arguments` characters.
    """
    if not order.prompt.strip():
        found.add("prompt", "must not be empty: say what the agent should do")
    if len(order.request_id) > _MAX_REQUEST_ID:
        found.add("request_id", f"must be at most {_MAX_REQUEST_ID} characters")
    for limit in ("max_iterations", "max_output_tokens"):
        if getattr(order, limit) < 0:
            found.add(f"limits.{limit}", "must be positive, or 0 to leave it to policy")
    if len(order.tools) > MAX_ITEMS:
        found.add("tools", f"must be at most {MAX_ITEMS}")
    for violation in history_violations(order.history, "history", longest_arguments):
        found.add(violation.field, violation.description)
    if found:
        raise InvalidRequest(found.told())


def model_of(order: RunOrder, tenant: Tenant) -> str:
    """The run's model. Raises NotFound if the tenant does not have it."""
    if order.model and order.model not in tenant.models:
        raise NotFound([Violation("model", f"{shown(order.model)} is unknown or not yours: {choices(tenant.models)}")])
    return order.model or tenant.models[0]


def assignment_of(order: RunOrder, tenant: Tenant, policy: Policy, listed: Listed) -> Assignment:
    """The assignment for `order`, within the tenant's tier and `policy`.

    `listed` are the tenant's tools. Raises NotFound for a model or a tool that the tenant does not
    have.
    """
    model = model_of(order, tenant)
    iterations = tenant.tier_policy.iterations
    return Assignment(
        model=model,
        results=Bounds(policy.models[model].longest_result, policy.shortener_of(tenant.tenant_id, model)),
        fallbacks=policy.fallbacks_of(tenant.tenant_id, model),
        messages=_messages(order, policy.instructions),
        tools=_tools(order.tools, listed),
        max_iterations=min(order.max_iterations or iterations, iterations),
        max_output_tokens=order.max_output_tokens,
        tool_retries=tenant.tier_policy.tool_retries,
        most_calls=policy.limits.tool_calls_per_turn,
        longest_arguments=policy.limits.longest_arguments,
    )


def _messages(order: RunOrder, default_instructions: str) -> tuple[Message, ...]:
    """One system message of instructions, the history, and the prompt."""
    messages = list(order.history)
    if order.instructions and messages and messages[0].role is Role.SYSTEM:
        del messages[0]  # an earlier run's instructions
    instructions = order.instructions or default_instructions
    if instructions and (order.instructions or not any(message.role is Role.SYSTEM for message in messages)):
        messages.insert(0, Message(Role.SYSTEM, instructions))
    return (*messages, Message(Role.USER, order.prompt))


def _tools(names: Sequence[str], listed: Listed) -> tuple[ToolSpec, ...]:
    if not names:
        return listed.specs
    offered = {spec.name: spec for spec in listed.specs}
    known = choices(sorted(offered))
    unknown = Violations()
    for index, name in enumerate(names):
        if name not in offered:
            unknown.add(f"tools[{index}]", f"{shown(name)} is unknown or not yours: {known}")
    if unknown and listed.now:  # a remembered listing may lack new tools
        raise NotFound(unknown.told())
    return tuple(offered[name] for name in dict.fromkeys(names) if name in offered)
