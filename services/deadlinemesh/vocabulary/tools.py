"""One tool call: the tool's description, the call's events and its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from deadlinemesh.vocabulary.phases import HopSpend

__all__ = ["ToolEvent", "ToolFinished", "ToolProgress", "ToolResult", "ToolSpec", "ToolStarted", "ToolStatus"]


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool's description for its callers."""

    name: str
    description: str
    schema: Mapping[str, Any]
    """JSON Schema (2020-12) of the arguments object."""
    idempotent: bool = False
    """True if a second identical call does no harm."""


class ToolStatus(StrEnum):
    """The end of a tool call. Names are those of the `ToolStatus` enum in `protos/`."""

    OK = "OK"
    FAILED = "FAILED"
    INVALID_ARGUMENTS = "INVALID_ARGUMENTS"
    UNKNOWN_TOOL = "UNKNOWN_TOOL"
    CUT = "CUT"


@dataclass(frozen=True, slots=True)
class ToolResult:
    """The result of a tool call as the model reads it."""

    status: ToolStatus
    content: str
    transient: bool = False
    """For a failure: true if another attempt may succeed."""
    retry_after: float | None = None
    """For a transient failure: seconds until the next attempt, as the tool asks; None if it does not say."""


@dataclass(frozen=True, slots=True)
class ToolStarted:
    """A connection or a worker was obtained after `queued` seconds."""

    queued: float = 0.0


@dataclass(frozen=True, slots=True)
class ToolProgress:
    """The tool's progress: `fraction` from 0 to 1, `message` for people."""

    fraction: float
    message: str = ""


@dataclass(frozen=True, slots=True)
class ToolFinished:
    """The result of the call, and the tool-runner's time; None if it did not say."""

    result: ToolResult
    spend: HopSpend | None = None


ToolEvent = ToolStarted | ToolProgress | ToolFinished
