"""Durations, phases, and a hop's report of its time on the wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deadlinemesh.v1 import common_pb2
from deadlinemesh.vocabulary import HopSpend, Phase

__all__ = ["microseconds", "phase_from_wire", "phase_to_wire", "phases_to_wire", "spend_from_wire", "spend_to_wire"]

MAX_DURATION_S = 366 * 86400.0
"""Seconds: the longest duration on the wire. A longer one is in a wrong unit."""

_PHASES = {getattr(common_pb2, f"PHASE_{phase.name}"): phase for phase in Phase}
_PHASES_TO_WIRE = {phase: value for value, phase in _PHASES.items()}


def microseconds(seconds: float) -> int:
    """Convert a duration from seconds, clamped to 0 and MAX_DURATION_S."""
    return round(max(0.0, min(seconds, MAX_DURATION_S)) * 1_000_000)


def phase_to_wire(phase: Phase) -> Any:
    """Encode a phase as a value of the wire's enum."""
    return _PHASES_TO_WIRE[phase]


def phase_from_wire(value: int) -> Phase | None:
    """Decode a phase; None for one that this version does not know."""
    return _PHASES.get(value)


def phases_to_wire(spent: Mapping[Phase, float]) -> list[common_pb2.PhaseSpend]:
    """Encode the seconds spent in each phase."""
    return [
        common_pb2.PhaseSpend(phase=phase_to_wire(phase), spent_us=microseconds(seconds))
        for phase, seconds in spent.items()
    ]


def spend_to_wire(spend: HopSpend) -> common_pb2.HopSpend:
    """Encode a hop's report of its time."""
    return common_pb2.HopSpend(
        hop=spend.hop, elapsed_us=microseconds(spend.elapsed), phases=phases_to_wire(spend.phases)
    )


def spend_from_wire(spend: common_pb2.HopSpend) -> HopSpend:
    """Decode a hop's report of its time, without phases that this version does not know."""
    phases = {phase: one.spent_us / 1_000_000 for one in spend.phases if (phase := phase_from_wire(one.phase))}
    return HopSpend(spend.hop, spend.elapsed_us / 1_000_000, phases)
