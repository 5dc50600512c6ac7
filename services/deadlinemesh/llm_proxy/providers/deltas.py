"""Assembles chat completion chunks: text at once, tool calls when complete, usage at the end."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from deadlinemesh.errors import UpstreamFailed, shortened
from deadlinemesh.llm_proxy.providers.tokens import estimated_tokens
from deadlinemesh.vocabulary import (
    LONGEST_ARGUMENTS,
    LONGEST_TOOL_NAME,
    FinishReason,
    ModelEvent,
    TextDelta,
    ToolCall,
    TurnFinished,
    Writing,
)

__all__ = ["Completion", "new_call_id"]

_REASONS = {
    "stop": FinishReason.STOP,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
    "length": FinishReason.LENGTH,
    "model_length": FinishReason.LENGTH,
    "content_filter": FinishReason.CONTENT_FILTER,
}

_CUT = {reason for reason, kind in _REASONS.items() if kind in (FinishReason.LENGTH, FinishReason.CONTENT_FILTER)}

_BROKEN_OFF = {"abort", "error", "insufficient_system_resource", "network_error"}
"""Finish reasons of vLLM, Mistral, DeepSeek and others for a stream that ended by their own
failure."""


LONGEST_WRITTEN = 4 * LONGEST_ARGUMENTS
"""Characters of a call's arguments beyond which the turn fails: the model does not stop writing.
The limit for calls of normal length is in policy."""

_PIECE = 16_384
"""Characters of one event's text. A provider may send all text at once, but a message has a
limit."""

_MOST_TOKENS = 1 << 53
"""Token count from which a provider's count is ignored."""


def new_call_id() -> str:
    """A new id for a tool call without an id from its provider."""
    return f"call_{uuid4().hex[:16]}"


@dataclass(slots=True)
class _PartialCall:
    index: int | None
    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)
    length: int = 0


class Completion:
    """One completion while it arrives.

    `input_estimate` are the input tokens if the provider sends no count.
    """

    def __init__(self, input_estimate: int) -> None:
        self._input_estimate = input_estimate
        self._written: list[str] = []
        self._open: _PartialCall | None = None
        self._called = False
        self._reason: str | None = None
        self._usage: tuple[int, int] | None = None
        # Some servers send the halves of a surrogate pair in two chunks. No message can hold one.
        self._pairs = codecs.getincrementaldecoder("utf-16-le")("replace")

    def feed(self, chunk: Any) -> Iterator[ModelEvent]:
        """Yield the events that `chunk`, a ChatCompletionChunk, completes.

        The SDK does not validate chunks. Raises AttributeError, TypeError or the like for a
        malformed one.
        """
        if chunk.usage is not None:
            self._usage = _counted(chunk.usage) or self._usage
        for choice in (chunk.choices or [])[:1]:
            if choice.delta is not None:
                for text in (choice.delta.content, getattr(choice.delta, "refusal", None)):
                    yield from self._feed_text(_text(text))
                for delta in choice.delta.tool_calls or ():
                    yield from self._feed_call(delta)
            if reason := _text(choice.finish_reason):  # some servers send "" instead of null
                self._reason = reason
                yield from self._close_call()

    @property
    def is_answered(self) -> bool:
        """True if the model has finished. The provider's usage may still follow."""
        return self._reason is not None

    def end(self) -> TurnFinished:
        """The end of the turn. Raises UpstreamFailed if the stream broke off."""
        if self._reason is None or self._reason in _BROKEN_OFF:
            why = f", by its own word {shortened(self._reason, LONGEST_TOOL_NAME)}," if self._reason else ""
            raise UpstreamFailed(f"the model provider's stream broke off{why} before the answer was complete")
        reason = _REASONS.get(self._reason, FinishReason.UNKNOWN)
        if self._called and reason is FinishReason.STOP:
            reason = FinishReason.TOOL_CALLS  # several servers send `stop` after tool calls
        counted = self._usage or (self._input_estimate, estimated_tokens("".join(self._written)))
        return TurnFinished(reason, *counted)

    def _feed_text(self, text: str) -> Iterator[ModelEvent]:
        sound = self._pairs.decode(text.encode("utf-16-le", "surrogatepass"))
        if sound:
            self._written.append(sound)
        for start in range(0, len(sound), _PIECE):
            yield TextDelta(sound[start : start + _PIECE])

    def _feed_call(self, delta: Any) -> Iterator[ModelEvent]:
        call = self._open
        # Some servers give every call the index 0. Then only the ids differ.
        if call is None or delta.index != call.index or (delta.id and call.id and delta.id != call.id):
            yield from self._close_call()
            call = self._open = _PartialCall(delta.index)
        yield Writing()
        call.id = call.id or _text(delta.id)
        if delta.function is not None:
            call.name = call.name or _text(delta.function.name)
            arguments = _text(delta.function.arguments)
            call.arguments.append(arguments)
            call.length += len(arguments)
            if call.length > LONGEST_WRITTEN:
                name = shortened(call.name, LONGEST_TOOL_NAME)
                raise UpstreamFailed(
                    f"the model asked for {name} with more than {LONGEST_WRITTEN} characters of arguments"
                )

    def _close_call(self) -> Iterator[ModelEvent]:
        call, self._open = self._open, None
        if call is None:
            return
        arguments = _sound("".join(call.arguments)) or "{}"
        call.id, call.name = _sound(call.id), _sound(call.name)
        try:
            complete = isinstance(json.loads(arguments), dict) and bool(call.name)
        except (ValueError, RecursionError):
            complete = False
        if complete:
            self._called = True
            self._written += (call.name, arguments)
            yield ToolCall(call.id or new_call_id(), call.name, arguments)
        elif self._reason not in _CUT | _BROKEN_OFF:  # else the call is cut, and the reason says so
            name = shortened(call.name, LONGEST_TOOL_NAME) or "a tool"
            raise UpstreamFailed(f"the model asked for {name} with arguments that are not a JSON object")


def _text(value: Any) -> str:
    """A chunk's text field; empty for null. Raises TypeError for any other type."""
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} where a text belongs")
    return value or ""


def _sound(text: str) -> str:
    """`text` with its surrogate pairs joined and lone surrogates replaced."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _counted(usage: Any) -> tuple[int, int] | None:
    """A provider's counts of input and output tokens. None if they are unusable."""
    counts = (getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None))
    read, wrote = (count if isinstance(count, int) and 0 <= count < _MOST_TOKENS else None for count in counts)
    return None if read is None or wrote is None else (read, wrote)
