"""What a tool is, and what comes of a call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from deadlinemesh.errors import UpstreamFailed, shortened, without_addresses
from deadlinemesh.vocabulary import ToolResult, ToolSpec, ToolStatus

__all__ = ["Call", "Tool", "ToolError", "failure", "invalid_arguments", "located", "sound"]


LONGEST_PLACE = 160
"""Characters of a path into arguments: their names may be a model's own."""

LONGEST_FAILURE = 4000
"""Characters of the text of an exception that was not raised for a model to read."""


class ToolError(Exception):
    """Raised by a tool that failed for a reason which the model should read as it is.

    `transient` says whether trying again may help; `retry_after` after how many seconds, where that is known.
    """

    # Of the class, as a subclass need not call the constructor of this one.
    transient: bool = False
    retry_after: float | None = None

    def __init__(self, message: str, *, transient: bool = False, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.transient = transient
        self.retry_after = retry_after


class Call(Protocol):
    """A call as the tool's kind sees it."""

    def begun(self) -> None:
        """Say that the wait for a connection or a worker is over. Only the first time counts."""

    async def progress(self, fraction: float, message: str = "") -> None:
        """Say how far the tool is, from 0 to 1. Waits when the caller does not read."""


class Tool(ABC):
    """A tool of any kind."""

    spec: ToolSpec
    origin: str
    """Where it is defined, for people: a function's module and name, or a place in the policy file."""
    cache_for: float = 0.0
    """Seconds for which a result is kept for the same tenant and arguments; 0 keeps none."""

    @abstractmethod
    async def run(self, arguments: Mapping[str, Any], call: Call) -> ToolResult:
        """Run with arguments that fit the schema. What it raises becomes a failure, except a cancellation."""


def invalid_arguments(tool: str, violations: Sequence[str]) -> ToolResult:
    """The result of a call that was not made, with each violation on a line of its own."""
    listed = "\n".join(f"- {violation}" for violation in violations)
    return ToolResult(
        ToolStatus.INVALID_ARGUMENTS,
        f"{tool} was not run, because its arguments are not right:\n{listed}\nCorrect them and call it again.",
    )


def failure(tool: str, error: BaseException) -> ToolResult:
    """The result of a call that raised `error`. It has a `ToolError`'s text unchanged, of others the type and the text without
    addresses.
    """
    try:
        text = str(error)
    except Exception as broken:  # the tool's own code makes the text
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
    """A path into JSON for people: `items[0].price`; `arguments` for the whole."""
    text = ""
    for part in path:
        if len(text) > LONGEST_PLACE:
            break
        name = part if isinstance(part, int) else shortened(part, LONGEST_PLACE // 2)
        text += f"[{name}]" if isinstance(part, int) else f".{name}" if text else str(name)
    return shortened(text, LONGEST_PLACE) or "arguments"


def sound(text: str) -> str:
    """`text` without lone surrogates, which JSON can spell and UTF-8 cannot."""
    return text.encode(errors="replace").decode()
