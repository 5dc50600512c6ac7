"""Shortening of tool results that are too long for a model.

Another, cheaper model shortens them while there is time. Else they are cut with a mark.
"""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass

from deadlinemesh.deadline import current, narrowed_after
from deadlinemesh.errors import MeshError
from deadlinemesh.orchestrator.allotment import allot
from deadlinemesh.orchestrator.events import Usage
from deadlinemesh.orchestrator.ports import ModelPort
from deadlinemesh.orchestrator.upstreams import Stopwatch, Upstreams
from deadlinemesh.vocabulary import (
    Message,
    Role,
    TextDelta,
    ToolCall,
    ToolChoice,
    TurnFinished,
    TurnRequest,
    TurnStarted,
)

__all__ = ["Bounds", "Shortener", "cut"]

SHARE = 0.25
"""Share of a run's remaining time that the shortening of one result may take."""

MOST_TOKENS, LEAST_TOKENS = 512, 48
"""Tokens of a shortened result: at most, and the least for which there must be time. A shorter text
would say too little."""

MOST_READ = 4
"""Multiple of the longest result that the shortening model reads at most."""

_ARGUMENTS = 500
"""Characters of a call's arguments that are shown to the shortening model."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The length of one tool result that a model reads."""

    longest: int
    """Characters of a result that is passed on unchanged."""
    shortener: str = ""
    """The model that shortens longer results. Empty: they are cut."""


class Shortener:
    """Shortens the results of one run. Its model calls and tokens are added to `usage`."""

    def __init__(self, models: ModelPort, upstreams: Upstreams, usage: Usage, bounds: Bounds) -> None:
        self._models = models
        self._upstreams = upstreams
        self._usage = usage
        self._bounds = bounds

    def too_long(self, content: str) -> bool:
        """True if `content` is too long to be passed on unchanged."""
        return len(content) > self._bounds.longest

    async def shorten(self, call: ToolCall, content: str) -> str:
        """Shorten a result that is too long. Cut it if no model can shorten it in time.

        Raises MeshError only if the run's time is spent.
        """
        said = await self._said_in_short(call, content) if self._bounds.shortener else ""
        if not said or self.too_long(said):  # a model may ignore the limit that it was given
            return self.cut(content)
        return f"[shortened by another model: the answer has {len(content)} characters]\n{said}"

    def cut(self, content: str) -> str:
        """The beginning of `content`, with a mark if it was too long."""
        return cut(content, self._bounds.longest)

    async def _said_in_short(self, call: ToolCall, content: str) -> str:
        model = self._bounds.shortener
        upstream = self._upstreams.of(f"model {model}")
        window = current().remaining * SHARE
        if upstream.pace.taking(LEAST_TOKENS) > window and not upstream.take_probe():
            return ""
        tokens = allot(window, upstream.pace, quickest_tool=None, most_tokens=MOST_TOKENS).max_tokens
        task = (
            f"Shorten what the tool {call.name} answered to {call.arguments_json[:_ARGUMENTS]}. Keep names, numbers and "
            f"identifiers as they are, leave out what repeats, add nothing. At most {tokens // 2} words."
        )
        messages = (Message(Role.SYSTEM, task), Message(Role.USER, content[: MOST_READ * self._bounds.longest]))
        turn = TurnRequest(model, messages, tool_choice=ToolChoice.NONE, max_output_tokens=tokens)
        said: list[str] = []
        finished = False
        timed = Stopwatch(upstream)
        self._usage.model_calls += 1
        try:
            async with narrowed_after(window, "shortening"):
                async with aclosing(self._models.generate(turn)) as events:
                    async for event in events:
                        match event:
                            case TurnStarted():
                                timed.begin()
                            case TextDelta():
                                timed.end()
                                timed.speaks()
                                said.append(event.text)
                            case TurnFinished():
                                timed.finish(event.output_tokens)
                                self._usage.input_tokens += event.input_tokens
                                self._usage.output_tokens += event.output_tokens
                                finished = True
        except MeshError:
            if current().is_expired:
                raise
        return "".join(said) if finished else ""


def cut(content: str, longest: int) -> str:
    """The first `longest` characters of `content`. A mark tells its length if there were more."""
    return (
        content if len(content) <= longest else f"{content[:longest]}\n[cut: the answer has {len(content)} characters]"
    )
