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
    """The description of a tool for its callers."""

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
    """True if the call failed and another attempt may succeed."""
    retry_after: float | None = None
    """Seconds until the next attempt, if the tool asks for them after a transient failure; else
    None."""


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
    """The result of the call, and the tool-runner's time; None if it reported none."""

    result: ToolResult
    spend: HopSpend | None = None


ToolEvent = ToolStarted | ToolProgress | ToolFinished
