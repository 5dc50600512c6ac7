"""Tools that are async Python functions. They run on the event loop."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError, to_json, to_jsonable_python

from deadlinemesh.deadline.lowlevel import own_processes
from deadlinemesh.errors import MOST_VIOLATIONS
from deadlinemesh.tool_runner.outcome import Call, Tool, ToolError, invalid_arguments, located, sound
from deadlinemesh.tool_runner.tool import Definition
from deadlinemesh.vocabulary import ToolResult, ToolStatus

__all__ = ["PythonTool", "content_of", "violations_of"]


class PythonTool(Tool):
    """An async function decorated with `@tool`."""

    def __init__(self, definition: Definition) -> None:
        self.spec = definition.spec
        self.cache_for = definition.cache_for
        self.origin = definition.origin
        self._definition = definition

    async def run(self, arguments: Mapping[str, Any], call: Call) -> ToolResult:
        own_processes()
        call.begun()
        try:
            bound = self._definition.bind(arguments)
        except ValidationError as error:
            return invalid_arguments(self.spec.name, violations_of(error))
        if self._definition.progress is not None:
            bound[self._definition.progress] = call.progress
        try:
            answer = await self._definition.function(**bound)
        except SystemExit as error:
            # asyncio would let it end the whole process, with the calls of all tenants.
            raise ToolError(f"{self.spec.name} tried to exit the process") from error
        return ToolResult(ToolStatus.OK, content_of(answer))


def content_of(answer: Any) -> str:
    """A function's answer as the model reads it: a string unchanged, any other value as JSON."""
    if isinstance(answer, str):
        return answer
    try:
        return to_json(answer, bytes_mode="base64", fallback=str).decode()
    except PydanticSerializationError as error:
        if "UnicodeEncodeError" not in str(error):
            raise
        # Half a surrogate pair: a Python string may have one, UTF-8 may not.
        plain = to_jsonable_python(_with_sound_keys(answer), bytes_mode="base64", fallback=str)
        return sound(json.dumps(plain, ensure_ascii=False, separators=(",", ":")))


def _with_sound_keys(part: Any) -> Any:
    if isinstance(part, dict):
        return {sound(key) if isinstance(key, str) else key: _with_sound_keys(one) for key, one in part.items()}
    if isinstance(part, (list, tuple, set, frozenset)):
        return [_with_sound_keys(one) for one in part]
    if isinstance(part, Iterator):
        raise ToolError("half a character is in an iterator, which can be read only once: return a list")
    return part


def violations_of(error: ValidationError) -> list[str]:
    """The violations of the function's annotations.

    Annotations can express more than a schema, for example that a date exists.
    """
    return [
        f"{located(problem['loc'])}: {problem['msg']}"
        for problem in islice(error.errors(include_url=False), MOST_VIOLATIONS)
    ]
