"""A provider's answer, from the bytes of its body on, as the OpenAI SDK reads it.

200 7 native            status, bytes in each piece, and how tools are offered
content-type: text/x    headers

data: ...               the body
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any
from unittest import mock

import httpx2
from tests.fuzz.reading import run

from deadlinemesh.errors import Shed, UpstreamFailed
from deadlinemesh.llm_proxy.providers import openai
from deadlinemesh.policy.model import OpenAIModel
from deadlinemesh.transport.codec import turn_event_to_wire
from deadlinemesh.vocabulary import (
    Message,
    ModelEvent,
    Role,
    TextDelta,
    ToolCall,
    ToolChoice,
    ToolSpec,
    TurnFinished,
    TurnRequest,
)

MOST_CHARACTERS = 2000
"""Of what is said of a provider's failure, whatever it has written itself."""

LOOK = ToolSpec("look", "Looks.", {"type": "object", "properties": {"a": {"type": "integer"}}})
HELLO = TurnRequest("demo", (Message(Role.USER, "hello"),), (LOOK,), ToolChoice.AUTO, 64)


class _Body(httpx2.AsyncByteStream):
    def __init__(self, body: bytes, size: int) -> None:
        self._pieces = [body[start : start + size] for start in range(0, len(body), size)]

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece


class _Endpoint(httpx2.AsyncBaseTransport):
    """Gives every request the answer that is set."""

    head: tuple[int, list[tuple[bytes, bytes]]]
    body: tuple[bytes, int]

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        status, headers = self.head
        return httpx2.Response(status, headers=headers, stream=_Body(*self.body))


ENDPOINT = _Endpoint()


def _provider(tools_by: Any) -> openai.OpenAIProvider:
    def client(**options: Any) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(**{**options, "transport": ENDPOINT})

    with mock.patch.object(openai, "DefaultAsyncHttpxClient", client):
        model = OpenAIModel(provider="openai", base_url="http://provider/v1", model="m", tools_by=tools_by)
        return openai.OpenAIProvider(model, "key")


PROVIDERS = {name: _provider(name) for name in ("native", "json_schema")}


def target(data: bytes) -> None:
    head, _, body = data.partition(b"\n\n")
    first, *lines = head.split(b"\n")
    status, size, tools_by = (*first.decode("latin-1").split(" "), "", "", "")[:3]
    pairs = [line.partition(b": ")[::2] for line in lines]
    ENDPOINT.head = int(status) if status.isdecimal() and status.isascii() and len(status) == 3 else 200, pairs
    ENDPOINT.body = body, max(1, int(size) if size.isdecimal() and size.isascii() and len(size) < 6 else 1024)
    run(_read(PROVIDERS.get(tools_by, PROVIDERS["native"])))


async def _read(provider: openai.OpenAIProvider) -> None:
    events: list[ModelEvent] = []
    try:
        async with aclosing(provider.stream(HELLO)) as stream:
            async for event in stream:
                events.append(event)
    except (Shed, UpstreamFailed) as failed:
        assert len(str(failed)) <= MOST_CHARACTERS, len(str(failed))
        assert failed.retry_after is None or failed.retry_after >= 0
    else:
        assert isinstance(events[-1], TurnFinished)
    check(events)


def check(events: list[ModelEvent]) -> None:
    """The events are such as a turn may have, and can be sent."""
    assert not any(isinstance(event, TurnFinished) for event in events[:-1])
    for event in events:
        match event:
            case TextDelta(text):
                assert text
            case ToolCall():
                assert event.id
                assert event.name
                assert isinstance(json.loads(event.arguments_json), dict)
        if not isinstance(event, TurnFinished):
            turn_event_to_wire(event).SerializeToString()
        else:
            assert 0 <= event.input_tokens < 2**63
            assert 0 <= event.output_tokens < 2**63
