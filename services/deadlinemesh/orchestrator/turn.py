"""Model turns: the time allotted to them, retries and fallbacks, and the model's stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial

from deadlinemesh.deadline import Attempt, AttemptHung, Ledger, SilenceTimeout, current
from deadlinemesh.errors import Doomed, Draining
from deadlinemesh.orchestrator.allotment import Allotment, allot
from deadlinemesh.orchestrator.assignment import Assignment
from deadlinemesh.orchestrator.events import RunEvent, Usage
from deadlinemesh.orchestrator.failures import TRANSIENT, is_transient
from deadlinemesh.orchestrator.ports import ModelPort
from deadlinemesh.orchestrator.tracking import TurnTracker
from deadlinemesh.orchestrator.upstreams import Upstreams, UpstreamStats
from deadlinemesh.vocabulary import (
    Message,
    Phase,
    ProviderData,
    Role,
    TextDelta,
    ToolCall,
    ToolChoice,
    ToolResult,
    ToolSpec,
    TurnFinished,
    TurnRequest,
    TurnStarted,
    Writing,
)

__all__ = ["ModelTurns", "Turn"]

MAX_CALLS_FACTOR = 2
"""Factor on the calls that a turn may make. A turn with so many calls is ended, because each call
beyond the limit adds a failed result to the history."""

_ROUND_SECONDS = (300, 240, 180, 120, 90, 60, 45, 30, 20, 15, 10, 7, 5, 3, 2, 1)

_CUT = "This call was cut: the run's time was spent before the tool answered."


@dataclass(slots=True)
class Turn:
    """One model turn so far."""

    text: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    results: dict[str, ToolResult] = field(default_factory=dict)
    """Results by call id."""
    provider_data: ProviderData | None = None

    @property
    def has_begun(self) -> bool:
        """True if the turn has text or calls. It must not be repeated then."""
        return bool(self.text or self.calls)

    def messages(self) -> list[Message]:
        """The turn as valid history. A call without a result gets a synthetic one."""
        if not self.has_begun:
            return []
        assistant = Message(Role.ASSISTANT, "".join(self.text), tuple(self.calls), provider_data=self.provider_data)
        return [assistant, *(Message(Role.TOOL, self._content(call), (), call.id) for call in self.calls)]

    def _content(self, call: ToolCall) -> str:
        result = self.results.get(call.id)
        return _CUT if result is None else result.content


class ModelTurns:
    """The model turns of one run. A model that fails is replaced for the rest of the run."""

    def __init__(
        self,
        assignment: Assignment,
        models: ModelPort,
        upstreams: Upstreams,
        ledger: Ledger[Phase],
        emit: Callable[[RunEvent], None],
        usage: Usage,
    ) -> None:
        self.truncated = False
        """True if a token limit ended the last turn, or the provider withheld its rest."""
        self._assignment = assignment
        self._choice = [assignment.model, *assignment.fallbacks]
        self._models = models
        self._upstreams = upstreams
        self._ledger = ledger
        self._emit = emit
        self._usage = usage

    def leave_no_time_for(self, offered: Sequence[ToolSpec]) -> bool:
        """True if the next turn must be the last.

        Takes a probe of the quickest tool now and then. Else tools that were slow once would never
        be offered again.
        """
        model, quickest = self._choice[0], self._quickest(offered)
        if not self._allotment(model, quickest.usually).wraps_up:
            return False
        return self._allotment(model, 0.0).wraps_up or not quickest.take_probe()

    async def speak(
        self,
        turn: Turn,
        history: Sequence[Message],
        offered: Sequence[ToolSpec],
        on_call: Callable[[ToolCall], None],
        *,
        last: bool,
    ) -> None:
        """Stream the model's turn into `turn`, with retries and fallbacks.

        A model that fails before any output is replaced by the next one. A fallback is no retry:
        its load is another upstream's, with separate limits. `on_call` is called with each tool
        call. `last` tells the model that time is short.
        """
        while True:
            model, *others = self._choice
            upstream = self._upstreams.of(f"model {model}")
            fallback = self._upstreams.of(f"model {others[0]}") if others else None
            try:
                return await upstream.retried(
                    partial(self._stream, turn, history, offered, on_call, last, model, upstream),
                    self._assignment.tool_retries,
                    is_transient=partial(_may_speak_again, turn, bool(others)),
                    waiting=partial(self._ledger.phase, Phase.RETRY_BACKOFF),
                    fallback_ready=None if fallback is None else fallback.take_fallback,
                )
            except (*TRANSIENT, Doomed, AttemptHung) as failed:
                # `take_fallback` can take a probe. For a hung attempt it was called already.
                here, hung = current(), isinstance(failed, AttemptHung)
                if fallback is None or turn.has_begun or not (hung or fallback.take_fallback(here.remaining)):
                    raise
                upstream.fell_back(here, others[0], "HUNG" if hung else failed.reason)
                self._choice = others

    async def _stream(
        self,
        turn: Turn,
        history: Sequence[Message],
        offered: Sequence[ToolSpec],
        on_call: Callable[[ToolCall], None],
        last: bool,
        model: str,
        upstream: UpstreamStats,
        attempt: Attempt,
    ) -> None:
        tracker = TurnTracker(self._ledger, upstream, attempt)
        allotment = self._allotment(model, self._quickest(offered).usually if offered else None)
        request = TurnRequest(
            model,
            (*history, _time_left(current().remaining, last)),
            tuple(offered),
            ToolChoice.AUTO if offered else ToolChoice.NONE,
            allotment.max_tokens,
        )
        self._usage.model_calls += 1
        # The time after the window is for tools. A turn without calls by then needs none.
        window = SilenceTimeout(lambda: bool(turn.calls))
        try:
            async with window, aclosing(self._models.generate(request)) as events:
                window.lasts(allotment.window)
                async for event in events:
                    match event:
                        case TurnStarted():
                            tracker.started()
                        case Writing():
                            tracker.writing()
                        case TextDelta():
                            tracker.text(live=not turn.calls)  # text after a call is not live
                            turn.text.append(event.text)
                            self._emit(event)
                        case ToolCall():
                            tracker.call()
                            if len(turn.calls) >= MAX_CALLS_FACTOR * self._assignment.most_calls:
                                break
                            on_call(event)
                        case TurnFinished():
                            self._finish(turn, event)
                            tracker.finished(event.output_tokens)
        except AttemptHung:
            if not window.gave_up:
                raise
        finally:
            tracker.close()

    def _finish(self, turn: Turn, event: TurnFinished) -> None:
        self._usage.input_tokens += event.input_tokens
        self._usage.output_tokens += event.output_tokens
        self.truncated = event.truncated
        turn.provider_data = event.provider_data

    def _allotment(self, model: str, quickest_tool: float | None) -> Allotment:
        pace, most = self._upstreams.of(f"model {model}").pace, self._assignment.max_output_tokens
        return allot(current().remaining, pace, quickest_tool=quickest_tool, most_tokens=most)

    def _quickest(self, offered: Sequence[ToolSpec]) -> UpstreamStats:
        return min((self._upstreams.of(f"tool {tool.name}") for tool in offered), key=lambda upstream: upstream.usually)


def _may_speak_again(turn: Turn, has_fallback: bool, error: Exception) -> bool:
    """True if the same model may be tried again.

    With a fallback, only Draining is retried: another instance of the llm-proxy has the same model.
    """
    return not turn.has_begun and (isinstance(error, Draining) if has_fallback else is_transient(error))


def _time_left(seconds: float, last: bool) -> Message:
    """The message that tells the model the time left, in round numbers that change rarely."""
    if last:
        return Message(Role.SYSTEM, "Time is nearly up. Give the best answer you can now, in two sentences at most.")
    round_seconds = next((step for step in _ROUND_SECONDS if seconds >= step), 0)
    left = f"About {round_seconds} seconds are left" if round_seconds else "Less than a second is left"
    return Message(Role.SYSTEM, f"{left} for everything, tools included.")
