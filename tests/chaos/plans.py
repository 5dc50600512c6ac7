"""Runs as they are made in most scenarios."""

from __future__ import annotations

from tests.chaos.mesh import HIT, SHORT, SPARED, Plan
from tests.chaos.provider import ToolUse, Turn

__all__ = ["calm", "fetches", "mixed", "speaks", "uses", "waits"]


def speaks(tenant: str, words: int = 3, every: float = 0.002, timeout: float | None = SHORT) -> Plan:
    """The model speaks, and that is all."""
    return Plan(tenant, lambda _: (Turn(words, every),), timeout)


def fetches(tenant: str, seconds: float = 0.05, timeout: float | None = SHORT) -> Plan:
    """The model asks for the HTTP tool, and then speaks of it."""
    return Plan(
        tenant,
        lambda run: (Turn(1, tools=(ToolUse(f"fetch_{tenant}", {"run": run, "seconds": seconds}),)), Turn()),
        timeout,
    )


def waits(tenant: str, seconds: float = 0.05, timeout: float | None = SHORT) -> Plan:
    """The model asks for a tool on the tool-runner's event loop."""
    return Plan(
        tenant, lambda run: (Turn(1, tools=(ToolUse("wait", {"run": run, "seconds": seconds}),)), Turn()), timeout
    )


def uses(tenant: str, tool: str, timeout: float | None = SHORT, **arguments: object) -> Plan:
    """The model asks for any tool."""
    return Plan(tenant, lambda run: (Turn(1, tools=(ToolUse(tool, {"run": run, **arguments}),)), Turn()), timeout)


def calm(timeout: float | None = None) -> list[Plan]:
    """Runs of the tenant that is to be spared: they take a while, and have time enough: their tier's."""
    return [speaks(SPARED, 100, 0.004, timeout), fetches(SPARED, 0.3, timeout), waits(SPARED, 0.3, timeout)]


def mixed(ample: float | None = None) -> list[Plan]:
    """Runs of both tenants. Of the one that is hit most would take longer than they have."""
    return [
        speaks(HIT, 400, 0.01),
        fetches(HIT, 60.0),
        waits(HIT, 60.0),
        fetches(HIT, 0.3),
        *calm(ample),
    ]
