"""The agent loop's view of the other hops. `adapters.py` has the gRPC side."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from deadlinemesh.vocabulary import ToolCall, ToolEvent, ToolSpec, TurnEvent, TurnRequest

__all__ = ["ModelPort", "ToolPort"]


class ModelPort(Protocol):
    """Model turns."""

    def generate(self, turn: TurnRequest) -> AsyncGenerator[TurnEvent, None]:
        """Stream one turn. Closing the generator stops the model. Raises MeshError."""


class ToolPort(Protocol):
    """Tools."""

    async def specs(self) -> tuple[ToolSpec, ...]:
        """The current tenant's tools. Raises MeshError."""

    def call(self, call: ToolCall) -> AsyncGenerator[ToolEvent, None]:
        """Run one tool; the last event is ToolFinished. Closing the generator stops it. Raises MeshError."""
