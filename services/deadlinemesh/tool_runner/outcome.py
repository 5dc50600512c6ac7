"""What a tool is, and what comes of a call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from deadlinemesh.errors import UpstreamFailed, shortened, without_addresses

__all__ = ["Call", "Tool", "ToolError", "ToolOutcome", "ToolSpec", "ToolStatus", "located", "sound"]


LONGEST_PLACE = 160
"""Characters of a path into arguments: their names may be a model's own."""

LONGEST_FAILURE = 4000
"""Characters of the text of an exception that was not raised for a model to read."""


class ToolStatus(StrEnum):
    """How a call ended. The names are those of the `ToolStatus` enum in `protos/`, without its prefix."""

    OK = "OK"
    FAILED = "FAILED"
    INVALID_ARGUMENTS = "INVALID_ARGUMENTS"


@dataclass(frozen=True, slots=True)
class ToolOutcome:
    """What came of a call, as the model will read it."""

    status: ToolStatus
    content: str
    transient: bool = False
    """For a failure: whether trying again may help."""
    retry_after: float | None = None
    """For a transient failure: seconds that the upstream asks to be left alone; None where it does not say."""

    @classmethod
    def invalid(cls, tool: str, violations: Sequence[str]) -> ToolOutcome:
        """The outcome of a call that was not made, each violation on a line of its own."""
        listed = "\n".join(f"- {violation}" for violation in violations)
        return cls(
            ToolStatus.INVALID_ARGUMENTS,
            f"{tool} was not run, because its arguments are not right:\n{listed}\nCorrect them and call it again.",
        )

    @classmethod
    def failed(cls, tool: str, error: BaseException) -> ToolOutcome:
        """The outcome of a call that raised `error`: of a `ToolError` its text as it is, of others the type and the text without
        addresses.
        """
        try:
            text = str(error)
        except Exception as broken:  # the text is made by the tool's own code, as the error was
            text = f"its text cannot be told: {type(broken).__name__}"
        if isinstance(error, ToolError):
            return cls(ToolStatus.FAILED, f"{tool} failed: {text}", error.transient, error.retry_after)
        transient = isinstance(error, (UpstreamFailed, ConnectionError, TimeoutError))
        wait = error.retry_after if isinstance(error, UpstreamFailed) else None
        return cls(
            ToolStatus.FAILED,
            f"{tool} failed: {type(error).__name__}: {without_addresses(text, LONGEST_FAILURE)}",
            transient,
            wait,
        )


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


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as it is described to those who may call it."""

    name: str
    description: str
    arguments_schema: Mapping[str, Any]
    """JSON Schema (2020-12) of the arguments object."""
    idempotent: bool
    """Whether a second identical call does no harm."""
    cache_for: float = 0.0
    """Seconds that its results may be kept for the same tenant and the same arguments; 0: they are not."""


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

    @abstractmethod
    async def run(self, arguments: Mapping[str, Any], call: Call) -> ToolOutcome:
        """Run with arguments that fit the schema. What it raises becomes a failure, except a cancellation."""


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
