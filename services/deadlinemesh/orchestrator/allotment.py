"""How much of what remains one model turn may have, and what can be said in it.

Nothing here is a fixed slice: what models and tools have lately been taking decides, and of what nothing is known nothing is held
against. All durations are in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SHORT_ANSWER", "Allotment", "Pace", "allot"]

SHORT_ANSWER = 32
"""Tokens of the shortest answer that is worth a turn of its own: two sentences."""


_AT_ONCE = 1e-6
"""A model that needs less than so many seconds for a token is limited by other things than time."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a model speaks; zeros where that is not known."""

    first_token: float = 0.0
    """From the slot to the first token, as it usually is at the most."""
    per_token: float = 0.0
    """From one token to the next."""

    def taking(self, tokens: int) -> float:
        """What it takes to say so many tokens."""
        return self.first_token + tokens * self.per_token

    def tokens_in(self, seconds: float) -> int | None:
        """How many tokens it can say in that time; None where that is not known."""
        if self.per_token <= _AT_ONCE:
            return None
        return max(1, int((seconds - self.first_token) / self.per_token))


@dataclass(frozen=True, slots=True)
class Allotment:
    """One turn's part of a run."""

    window: float
    """The longest that the turn may ask for tools. What is behind it belongs to them, and to the answer after them."""
    max_tokens: int
    """What can be said in the window. Told that much, a model tends to finish instead of being cut."""
    wraps_up: bool
    """Only one more short turn fits: no tool is offered any more."""


def allot(remaining: float, pace: Pace, *, quickest_tool: float | None, most_tokens: int) -> Allotment:
    """The next turn's part of `remaining` for a model of this `pace`.

    `quickest_tool` is what the quickest of the offered tools usually takes, 0 if that is not known; None if none is offered.
    `most_tokens` is what may be said whatever the time, 0 for no limit.
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
