"""The share of a run's remaining time that one model turn may use, and the tokens that fit into it.

There are no fixed shares: the recent durations of models and tools decide. Unknown models and tools
are assumed to take no time. All durations are in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SHORT_ANSWER", "Allotment", "Pace", "allot"]

SHORT_ANSWER = 32
"""Tokens of the shortest answer that is worth a separate turn: two sentences."""


_AT_ONCE = 1e-6
"""Seconds per token at or below which time does not limit a model's output."""


@dataclass(frozen=True, slots=True)
class Pace:
    """The speed of a model. Zeros if it is unknown."""

    first_token: float = 0.0
    """Seconds from the slot to the first token: a high quantile of recent turns."""
    per_token: float = 0.0
    """Seconds from one token to the next: the median of recent turns."""

    def taking(self, tokens: int) -> float:
        """Seconds that the model needs for `tokens` tokens."""
        return self.first_token + tokens * self.per_token

    def tokens_in(self, seconds: float) -> int | None:
        """The number of tokens that fit into `seconds`, at least 1. None if the pace is unknown."""
        if self.per_token <= _AT_ONCE:
            return None
        return max(1, int((seconds - self.first_token) / self.per_token))


@dataclass(frozen=True, slots=True)
class Allotment:
    """One turn's share of a run."""

    window: float
    """Seconds in which the turn may ask for tools. The time after it is for the tools and the next
    answer."""
    max_tokens: int
    """Tokens that fit into the window, 0 for no limit. A model that knows its limit tends to finish
    instead of being cut."""
    wraps_up: bool
    """True if only one more short turn fits. It is offered no tools."""


def allot(remaining: float, pace: Pace, *, quickest_tool: float | None, most_tokens: int) -> Allotment:
    """The next turn's share of `remaining` seconds for a model of this `pace`.

    `quickest_tool` is the usual duration of the quickest offered tool: 0 if it is unknown, None if
    no tool is offered. `most_tokens` bounds the tokens independently of the time, 0 for no bound.
    """
    window, wraps_up = remaining, False
    if quickest_tool is not None:
        short = pace.taking(SHORT_ANSWER)
        behind = quickest_tool + short
        if remaining < short + behind and short > 0:
            wraps_up = True
        else:
            window = max(0.0, remaining - behind)
    fitting = pace.tokens_in(window)
    limits = [limit for limit in (fitting, most_tokens or None) if limit is not None]
    return Allotment(window, min(limits, default=0), wraps_up)
