"""Tools that are async Python functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import to_json

from deadlinemesh.tool_runner.arguments import located
from deadlinemesh.tool_runner.outcome import Call, Tool, ToolError, ToolOutcome, ToolStatus
from deadlinemesh.tool_runner.tool import Definition

__all__ = ["PythonTool"]


class PythonTool(Tool):
    """A function decorated with `@tool`. The model reads a string that it returns as it is, anything else as JSON."""

    def __init__(self, definition: Definition) -> None:
        self.spec = definition.spec
        self.origin = definition.origin
        self._definition = definition

    async def run(self, arguments: Mapping[str, Any], call: Call) -> ToolOutcome:
        call.begun()
        try:
            bound = self._definition.bind(arguments)
        except ValidationError as error:
            # Annotations can say what a schema cannot: that a date exists, that two fields agree.
            wrong = [f"{located(problem['loc'])}: {problem['msg']}" for problem in error.errors(include_url=False)]
            return ToolOutcome.invalid(self.spec.name, wrong)
        if self._definition.progress is not None:
            bound[self._definition.progress] = call.progress
        try:
            answer = await self._definition.function(**bound)
        except SystemExit as error:
            # asyncio would let it end the whole process, with every other tenant's calls.
            raise ToolError(f"{self.spec.name} tried to exit the process") from error
        content = answer if isinstance(answer, str) else to_json(answer, bytes_mode="base64", fallback=str).decode()
        return ToolOutcome(ToolStatus.OK, content)
