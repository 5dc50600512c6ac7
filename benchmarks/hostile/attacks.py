"""The attacks by name, and how fast each goes: as fast as a cheap link, or one busy core of a client, can send."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from benchmarks.hostile import strangers, tenants
from benchmarks.hostile.attacker import Attacker

__all__ = ["ATTACKS", "RAW", "TENANTS", "Attack", "Play"]

Play = Callable[[Attacker], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Attack:
    """What is sent, and how many units of it a second."""

    play: Play
    per_s: float
    count: int
    """Units that are enough for a test of one service."""

    @property
    def name(self) -> str:
        """As commands give it."""
        return self.play.__name__.replace("_", "-")

    @property
    def what(self) -> str:
        """What is sent, for people to read."""
        return (self.play.__doc__ or "").strip().splitlines()[0]


RAW = (
    Attack(strangers.watch_without_window, 100, 100),
    Attack(strangers.watch_many, 500, 3000),
    Attack(strangers.headers_only, 1000, 5000),
    Attack(strangers.half_messages, 500, 3000),
    Attack(strangers.promised_messages, 500, 3000),
    Attack(strangers.unread_unary, 100, 100),
    Attack(strangers.unread_streams, 20, 20),
    Attack(strangers.large_headers, 200, 200),
    Attack(strangers.many_headers, 100, 100),
    Attack(strangers.hpack_bombs, 100, 50),
    Attack(strangers.continuation_flood, 2000, 1000),
    Attack(strangers.endless_trailers, 2000, 1000),
    Attack(strangers.empty_data, 5000, 2000),
    Attack(strangers.rapid_reset, 1000, 1000),
    Attack(strangers.rapid_reset_of_calls, 300, 300),
    Attack(strangers.ping_flood, 5000, 5000),
    Attack(strangers.unread_pings, 5000, 5000),
    Attack(strangers.settings_flood, 5000, 5000),
    Attack(strangers.unread_settings, 5000, 5000),
    Attack(strangers.priority_flood, 5000, 5000),
    Attack(strangers.window_overflow, 50, 10),
    Attack(strangers.overrun_windows, 500, 100),
    Attack(strangers.broken_frames, 50, 24),
    Attack(strangers.slow_bytes, 1000, 3000),
    Attack(strangers.silent_connections, 50, 200),
    Attack(strangers.garbage, 50, 100),
)
"""Attacks with frames, against any service."""

TENANTS = (
    Attack(tenants.hostile_history, 2, 4),
    Attack(tenants.nested_arguments, 0.5, 1),
    Attack(tenants.large_reads, 4, 4),
    Attack(tenants.large_runs, 2, 4),
    Attack(tenants.unread_large_replies, 20, 40),
    Attack(tenants.many_tool_calls, 1, 1),
    Attack(tenants.long_answers, 0.1, 1),
)
"""Attacks with well-formed calls, against the whole mesh."""


def _mixed(attacks: tuple[Attack, ...], share: float) -> tuple[Attack, ...]:
    return tuple(replace(attack, per_s=attack.per_s * share) for attack in attacks)


ATTACKS: dict[str, tuple[Attack, ...]] = {
    **{attack.name: (attack,) for attack in (*RAW, *TENANTS)},
    "all-frames": _mixed(RAW, 0.1),
    "all-calls": _mixed(TENANTS, 0.25),
    "everything": _mixed(RAW, 0.05) + _mixed(TENANTS, 0.12),
}
"""What the benchmark plays, by name: one attack, or several at once, each at a part of its rate."""
