"""The phases of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from deadlinemesh.deadline import Clock, Ledger

__all__ = ["HopSpend", "Phase", "phase_ledger"]


class Phase(StrEnum):
    """A named part of a run. Names are those of the `Phase` enum in `protos/`, in lower case.

    They are in order of precedence. If two overlap, the earlier one is charged: for example, if a
    tool runs while the model still streams.
    """

    WRAP_UP = "wrap_up"
    LLM_STREAM = "llm_stream"
    LLM_FIRST_TOKEN = "llm_first_token"
    LLM_QUEUE = "llm_queue"
    TOOL_CALL = "tool_call"
    TOOL_QUEUE = "tool_queue"
    RETRY_BACKOFF = "retry_backoff"
    RESPONSE = "response"
    PROCESSING = "processing"
    ADMISSION = "admission"


_RANKS = {phase: rank for rank, phase in enumerate(Phase)}


@dataclass(frozen=True, slots=True)
class HopSpend:
    """The time that a hop reports for itself, in seconds."""

    hop: str
    elapsed: float
    phases: Mapping[Phase, float]


def phase_ledger(
    clock: Clock,
    started_at: float,
    *,
    opening: Phase | None = None,
    on_change: Callable[[Phase], None] | None = None,
) -> Ledger[Phase]:
    """A `Ledger` of these phases."""
    return Ledger(_RANKS, clock, started_at, opening=opening, on_change=on_change)
