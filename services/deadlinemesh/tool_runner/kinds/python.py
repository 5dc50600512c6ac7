"""Tools that are async Python functions: they run on the event loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import to_json

from deadlinemesh.tool_runner.outcome import Call, Tool, ToolError, ToolOutcome, ToolStatus, located
from deadlinemesh.tool_runner.tool import Definition

__all__ = ["PythonTool", "content_of", "violations_of"]


class PythonTool(Tool):
    """An async function decorated with `@tool`."""

    def __init__(self, definition: Definition) -> None:
        self.spec = definition.spec
        self.origin = definition.origin
        self._definition = definition

    async def run(self, arguments: Mapping[str, Any], call: Call) -> ToolOutcome:
        call.begun()
        try:
            bound = self._definition.bind(arguments)
        except ValidationError as error:
            return ToolOutcome.invalid(self.spec.name, violations_of(error))
        if self._definition.progress is not None:
            bound[self._definition.progress] = call.progress
        try:
            answer = await self._definition.function(**bound)
        except SystemExit as error:
            # asyncio would let it end the whole process, with every other tenant's calls.
            raise ToolError(f"{self.spec.name} tried to exit the process") from error
        return ToolOutcome(ToolStatus.OK, content_of(answer))


def content_of(answer: Any) -> str:
    """What the model reads of a function's answer: a string as it is, anything else as JSON."""
    return answer if isinstance(answer, str) else to_json(answer, bytes_mode="base64", fallback=str).decode()


def violations_of(error: ValidationError) -> list[str]:
    """What only the annotations know to be wrong: they can say what a schema cannot, as that a date exists."""
    return [f"{located(problem['loc'])}: {problem['msg']}" for problem in error.errors(include_url=False)]
