"""The agent loop's interfaces to the other hops. `adapters.py` implements them over gRPC."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from deadlinemesh.vocabulary import ToolCall, ToolEvent, ToolSpec, TurnEvent, TurnRequest

__all__ = ["ModelPort", "ToolPort"]


class ModelPort(Protocol):
    """Streams model turns."""

    def generate(self, turn: TurnRequest) -> AsyncGenerator[TurnEvent, None]:
        """Stream one turn. Closing the generator stops the model. Raises MeshError."""


class ToolPort(Protocol):
    """Lists and runs tools."""

    async def specs(self) -> tuple[ToolSpec, ...]:
        """List the current tenant's tools. Raises MeshError."""

    def call(self, call: ToolCall) -> AsyncGenerator[ToolEvent, None]:
        """Run one tool. The last event is ToolFinished. Closing the generator stops the tool.

        Raises MeshError.
        """
