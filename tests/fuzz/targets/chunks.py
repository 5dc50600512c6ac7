"""A provider's chunks put together: a line of JSON for each. The SDK makes objects of them and validates nothing."""

from __future__ import annotations

from openai._models import construct_type
from openai.types.chat import ChatCompletionChunk
from tests.fuzz.reading import json_lines
from tests.fuzz.targets.sse import PROVIDERS, check

from deadlinemesh.errors import UpstreamFailed
from deadlinemesh.llm_proxy.providers.deltas import Completion
from deadlinemesh.vocabulary import ModelEvent, TextDelta, TurnFinished

JSON_LINES = True


def target(data: bytes) -> None:
    completion = Completion(7)
    events: list[ModelEvent] = []
    sent = 0
    try:
        with PROVIDERS["native"]._failures():
            for line in json_lines(data):
                sent += 1
                for event in completion.feed(construct_type(value=line, type_=ChatCompletionChunk)):
                    events.append(event)
        events.append(completion.end())
    except UpstreamFailed as failed:
        assert len(str(failed)) < 2000, len(str(failed))
    check(events)
    assert sum(len(event.text) for event in events if isinstance(event, TextDelta)) <= len(data)
    if events and isinstance(events[-1], TurnFinished):
        assert completion.is_answered
