"""The work of one agent, and its limits."""

from __future__ import annotations

from dataclasses import dataclass

from deadlinemesh.orchestrator.shortening import Bounds
from deadlinemesh.vocabulary import LONGEST_ARGUMENTS, Message, ToolSpec

__all__ = ["Assignment"]


@dataclass(frozen=True, slots=True)
class Assignment:
    """The work of one agent, and its limits."""

    model: str
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    max_iterations: int
    max_output_tokens: int
    tool_retries: int
    """Attempts after the first, of a tool call and of a model turn that has said nothing."""
    results: Bounds
    """The length of tools' results in the history."""
    most_calls: int = 64
    """Calls in one model turn."""
    longest_arguments: int = LONGEST_ARGUMENTS
    """Characters of a call's arguments."""
    fallbacks: tuple[str, ...] = ()
    """Models that replace `model`, in this order, for the rest of a run in which it fails."""
