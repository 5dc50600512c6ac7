"""The base class of tools, the call that a tool sees, and failures as results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from deadlinemesh.errors import UpstreamFailed, shortened, without_addresses
from deadlinemesh.vocabulary import ToolResult, ToolSpec, ToolStatus

__all__ = ["Call", "Tool", "ToolError", "failure", "invalid_arguments", "located", "sound"]


LONGEST_PLACE = 160
"""Characters of a path into arguments. A model may have chosen the names in it."""

LONGEST_FAILURE = 4000
"""Characters of the text of an exception that was not written for a model."""


class ToolError(Exception):
    """The tool failed, and the model should read this message unchanged.

    `transient` is true if another attempt may succeed. `retry_after` is the seconds until that
    attempt, or None if unknown.
    """

    # Also class attributes, because a subclass need not call this constructor.
    transient: bool = False
    retry_after: float | None = None

    def __init__(self, message: str, *, transient: bool = False, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.transient = transient
        self.retry_after = retry_after


class Call(Protocol):
    """A call as the tool's kind sees it."""

    def begun(self) -> None:
        """Report that the wait for a connection or a worker is over. Only the first call counts."""

    async def progress(self, fraction: float, message: str = "") -> None:
        """Report the tool's progress, from 0 to 1. Waits while the caller does not read."""


class Tool(ABC):
    """A tool of any kind."""

    spec: ToolSpec
    origin: str
    """The tool's definition, for people: a function's module and name, or a place in the policy
    file.
    """
    cache_for: float = 0.0
    """Seconds for which a result is kept for the same tenant and arguments; 0 keeps none."""

    @abstractmethod
    async def run(self, arguments: Mapping[str, Any], call: Call) -> ToolResult:
        """Run the tool with arguments that fit the schema.

        An exception becomes a failure result, except a cancellation, Shed and Doomed.
        """


def invalid_arguments(tool: str, violations: Sequence[str]) -> ToolResult:
    """The result of a call that was not made. Lists each violation on a separate line."""
    listed = "\n".join(f"- {violation}" for violation in violations)
    return ToolResult(
        ToolStatus.INVALID_ARGUMENTS,
        f"{tool} was not run, because its arguments are not right:\n{listed}\nCorrect them and call it again.",
    )


def failure(tool: str, error: BaseException) -> ToolResult:
    """The result of a call that raised `error`.

    The text of a `ToolError` is kept unchanged. For other errors the result has the type and the
    text without addresses.
    """
    try:
        text = str(error)
    except Exception as broken:  # `__str__` may be the tool's own code
        text = f"its text cannot be told: {type(broken).__name__}"
    if isinstance(error, ToolError):
        return ToolResult(ToolStatus.FAILED, f"{tool} failed: {text}", error.transient, error.retry_after)
    transient = isinstance(error, (UpstreamFailed, ConnectionError, TimeoutError))
    wait = error.retry_after if isinstance(error, UpstreamFailed) else None
    return ToolResult(
        ToolStatus.FAILED,
        f"{tool} failed: {type(error).__name__}: {without_addresses(text, LONGEST_FAILURE)}",
        transient,
        wait,
    )


def located(path: Iterable[str | int]) -> str:
    """Format a path into JSON for people, as `items[0].price`. An empty path is `arguments`."""
    text = ""
    for part in path:
        if len(text) > LONGEST_PLACE:
            break
        name = part if isinstance(part, int) else shortened(part, LONGEST_PLACE // 2)
        text += f"[{name}]" if isinstance(part, int) else f".{name}" if text else str(name)
    return shortened(text, LONGEST_PLACE) or "arguments"


def sound(text: str) -> str:
    """`text` without lone surrogates. JSON can spell them, UTF-8 cannot."""
    return text.encode(errors="replace").decode()
