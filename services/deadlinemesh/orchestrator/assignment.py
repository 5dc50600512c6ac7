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
    """Attempts after the first, for a tool call and for a model turn without output."""
    results: Bounds
    """Bounds of tools' results in the history."""
    most_calls: int = 64
    """Tool calls that one model turn may make."""
    longest_arguments: int = LONGEST_ARGUMENTS
    """Characters that a call's arguments may have."""
    fallbacks: tuple[str, ...] = ()
    """Models that replace `model` for the rest of the run if it fails, in this order."""
