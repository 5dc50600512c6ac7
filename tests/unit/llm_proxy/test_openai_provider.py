"""The OpenAI provider against an endpoint on a real socket, which sees when its caller is gone."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest

from deadlinemesh.errors import Shed, UpstreamFailed, UpstreamRefused
from deadlinemesh.llm_proxy.providers import openai, provider_of
from deadlinemesh.llm_proxy.providers.choosing import chosen
from deadlinemesh.llm_proxy.providers.openai import OpenAIProvider
from deadlinemesh.policy.model import OpenAIModel
from deadlinemesh.vocabulary import (
    FinishReason,
    Message,
    ModelEvent,
    Role,
    TextDelta,
    ToolCall,
    ToolChoice,
    ToolSpec,
    TurnFinished,
    TurnRequest,
    Writing,
)

LOOK = ToolSpec("look", "Looks.", {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
HELLO = (Message(Role.USER, "hello"),)
STREAM = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Endpoint:
    """Answers each request with the next of `answers`, which write to the socket as they like."""

    def __init__(self) -> None:
        self.answers: list[Callable[[Endpoint, asyncio.StreamWriter], Awaitable[None]]] = []
        self.requests: list[dict[str, Any]] = []
        self.headers: list[str] = []
        self.connections = 0
        self.asked = asyncio.Event()
        self.gone = asyncio.Event()
        """Set when a caller closed its connection."""

    async def left(self) -> None:
        """Return when a caller has closed its connection. Fails rather than hangs where none does."""
        async with asyncio.timeout(5):
            await self.gone.wait()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = next(
                    int(line[15:]) for line in head.lower().split("\r\n") if line.startswith("content-length:")
                )
                self.headers.append(head)
                self.requests.append(json.loads(await reader.readexactly(length)))
                self.asked.set()
                await self.answers.pop(0)(self, writer)
                await writer.drain()
        self.gone.set()
        writer.close()


def framed(text: str) -> bytes:
    raw = text.encode()
    return f"{len(raw):x}\r\n".encode() + raw + b"\r\n"


def chunk(*, reason: str | None = None, usage: tuple[int, int] | None = None, **delta: Any) -> str:
    body: dict[str, Any] = {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
    if usage is not None:
        body = {"choices": [], "usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1]}}
    return f"data: {json.dumps(body)}\n\n"


def part(index: int, arguments: str = "", call_id: str | None = None, name: str | None = None) -> dict[str, Any]:
    return {"index": index, "id": call_id, "function": {"name": name, "arguments": arguments}}


def streams(*chunks: str, ends: bool = True) -> Callable[[Endpoint, asyncio.StreamWriter], Awaitable[None]]:
    """Streams `chunks`; without `ends` it then keeps the connection open, as a model does that is still writing."""

    async def answer(endpoint: Endpoint, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM.encode() + b"".join(map(framed, chunks)))
        if ends:
            writer.write(framed("data: [DONE]\n\n") + b"0\r\n\r\n")

    return answer


def endless_stream(*chunks: str, ends: bool) -> Callable[[Endpoint, asyncio.StreamWriter], Awaitable[None]]:
    """Streams `chunks`, and then for ever chunks that say nothing."""
    assert not ends
    return endless(STREAM + "".join(framed(one).decode() for one in chunks), "data: {}\n\n")


def says(status: str, body: str, *headers: str) -> Callable[[Endpoint, asyncio.StreamWriter], Awaitable[None]]:
    async def answer(endpoint: Endpoint, writer: asyncio.StreamWriter) -> None:
        lines = (f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Content-Type: application/json", *headers)
        writer.write(("\r\n".join(lines) + "\r\n\r\n" + body).encode())

    return answer


async def says_nothing(endpoint: Endpoint, writer: asyncio.StreamWriter) -> None:
    """Accepts the request and never answers."""


async def hangs_up(endpoint: Endpoint, writer: asyncio.StreamWriter) -> None:
    writer.write(STREAM.encode() + framed(chunk(content="half an")))
    await writer.drain()
    writer.close()


@asynccontextmanager
async def endpoint(*answers: Any, **model: Any) -> AsyncIterator[tuple[Endpoint, OpenAIProvider]]:
    fake = Endpoint()
    fake.answers = list(answers)
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    settings = {
        "provider": "openai",
        "base_url": f"http://127.0.0.1:{port}/v1",
        "model": "m",
        "api_key_env": "",
        **model,
    }
    provider = OpenAIProvider(OpenAIModel(**settings), "sesame")
    try:
        yield fake, provider
    finally:
        await provider.aclose()
        server.close()


def turn(*messages: Message, tools: tuple[ToolSpec, ...] = (), choice: ToolChoice = ToolChoice.AUTO) -> TurnRequest:
    return TurnRequest("small", messages or HELLO, tools, choice, 100)


async def all_of(provider: OpenAIProvider, request: TurnRequest | None = None) -> list[ModelEvent]:
    """All that it says, signs of life left out."""
    return [event async for event in provider.stream(request or turn()) if not isinstance(event, Writing)]


async def failure(*answers: Any, **model: Any) -> Shed | UpstreamFailed:
    async with endpoint(*answers, **model) as (_, provider):
        try:
            await all_of(provider)
        except (Shed, UpstreamFailed) as error:
            return error
    pytest.fail("no failure was told")


async def test_text_and_usage_are_streamed_and_the_connection_is_used_again() -> None:
    answer = streams(chunk(role="assistant", content=""), chunk(content="a"), chunk(content="b"), chunk(reason="stop"))
    counted = streams(chunk(content="c"), chunk(reason="length"), chunk(usage=(9, 8)))
    async with endpoint(answer, counted) as (fake, provider):
        assert await all_of(provider) == [TextDelta("a"), TextDelta("b"), TurnFinished(FinishReason.STOP, 11, 1)]
        assert await all_of(provider) == [TextDelta("c"), TurnFinished(FinishReason.LENGTH, 9, 8)]
        assert fake.connections == 1
    sent = fake.requests[0]
    assert sent["messages"] == [{"role": "user", "content": "hello"}]
    assert (sent["model"], sent["max_tokens"], sent["stream_options"]) == ("m", 100, {"include_usage": True})
    assert not {"tools", "tool_choice", "return_progress"} & set(sent)
    assert "authorization: bearer sesame" in fake.headers[0].lower()


async def test_closing_the_stream_closes_the_connection_so_that_generation_stops() -> None:
    async with endpoint(streams(chunk(content="for"), chunk(content=" ever"), ends=False)) as (fake, provider):
        async with aclosing(provider.stream(turn())) as events:
            assert await anext(events) == TextDelta("for")
        await fake.left()


async def test_cancelling_the_reader_closes_the_connection() -> None:
    async with endpoint(streams(chunk(content="for"), ends=False)) as (fake, provider):
        reading = asyncio.ensure_future(all_of(provider))
        await fake.asked.wait()
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await fake.left()


async def test_cancelling_before_the_first_byte_closes_the_connection() -> None:
    async with endpoint(says_nothing) as (fake, provider):
        reading = asyncio.ensure_future(all_of(provider))
        await fake.asked.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await fake.left()


@pytest.mark.parametrize(
    "answer", [streams(chunk(content="for"), ends=False), says_nothing], ids=["mid-stream", "silent"]
)
@pytest.mark.parametrize("turns", range(6))
async def test_a_second_cancel_while_it_closes_leaves_no_connection_open(answer: Any, turns: int) -> None:
    async with endpoint(answer) as (fake, provider):
        reading = asyncio.ensure_future(all_of(provider))
        await fake.asked.wait()
        reading.cancel()
        for _ in range(turns):
            await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await fake.left()


async def test_nothing_is_retried_behind_the_deadlines_back() -> None:
    async with endpoint(says("500 Oops", "{}"), streams(chunk(reason="stop"))) as (fake, provider):
        with pytest.raises(UpstreamFailed):
            await all_of(provider)
        assert len(fake.requests) == 1


async def test_tool_calls_are_put_together_and_sent_as_soon_as_they_are_complete() -> None:
    chunks = (
        chunk(tool_calls=[part(0, call_id="c1", name="look")]),
        chunk(tool_calls=[part(0, '{"a"')]),
        chunk(tool_calls=[part(0, ": 1}")]),
        chunk(tool_calls=[part(1, '{"a": ', "c2", "look")]),
    )
    async with endpoint(streams(*chunks, ends=False)) as (fake, provider):
        async with aclosing(provider.stream(turn(tools=(LOOK,)))) as events:
            for _ in range(3):
                assert await anext(events) == Writing()
            # The stream hangs in the middle of the second call: the first is there all the same.
            assert await anext(events) == ToolCall("c1", "look", '{"a": 1}')
    sent = fake.requests[0]
    assert sent["tool_choice"] == "auto"
    assert sent["tools"][0]["function"] == {"name": "look", "description": "Looks.", "parameters": LOOK.schema}


async def test_the_last_call_comes_with_the_finish_reason() -> None:
    chunks = (chunk(tool_calls=[part(0, "{}", "c1", "look")]), chunk(reason="stop"))
    async with endpoint(streams(*chunks)) as (_, provider):
        events = await all_of(provider, turn(tools=(LOOK,), choice=ToolChoice.REQUIRED))
        assert [type(event) for event in events] == [ToolCall, TurnFinished]
        assert events[-1].finish_reason is FinishReason.TOOL_CALLS  # type: ignore[union-attr]


async def test_calls_that_share_an_index_are_told_apart_by_their_ids() -> None:
    calls = [part(0, "{}", "c1", "look"), part(0, "{}", "c2", "look")]
    async with endpoint(streams(chunk(tool_calls=calls), chunk(reason="tool_calls"))) as (_, provider):
        events = await all_of(provider, turn(tools=(LOOK,)))
        assert [event.id for event in events if isinstance(event, ToolCall)] == ["c1", "c2"]


async def test_a_call_without_an_id_gets_one() -> None:
    chunks = (chunk(tool_calls=[part(0, "", None, "look")]), chunk(reason="tool_calls"))
    async with endpoint(streams(*chunks)) as (_, provider):
        event, _ = await all_of(provider, turn(tools=(LOOK,)))
        assert isinstance(event, ToolCall)
        assert event.id
        assert event.arguments_json == "{}"


@pytest.mark.parametrize("reason", ["length", "model_length", "content_filter"])
async def test_a_call_that_a_limit_cut_is_left_out(reason: str) -> None:
    chunks = (chunk(tool_calls=[part(0, '{"a": ', "c1", "look")]), chunk(reason=reason))
    async with endpoint(streams(*chunks)) as (_, provider):
        assert [type(event) for event in await all_of(provider, turn(tools=(LOOK,)))] == [TurnFinished]


@pytest.mark.parametrize("arguments", ['{"a": ', "[]", "[" * 20_000, '{"a": ' * 20_000], ids=lambda given: given[:9])
async def test_a_call_whose_arguments_are_no_object_is_a_failure(arguments: str) -> None:
    chunks = (chunk(tool_calls=[part(0, arguments, "c1", "look")]), chunk(reason="tool_calls"))
    error = await failure(streams(*chunks))
    assert "look with arguments that are not a JSON object" in str(error)


async def test_tools_are_not_offered_where_they_may_not_be_used() -> None:
    async with endpoint(streams(chunk(reason="stop"))) as (fake, provider):
        await all_of(provider, turn(tools=(LOOK,), choice=ToolChoice.NONE))
        assert "tools" not in fake.requests[0]


EXTRA = {"chat_template_kwargs": {"enable_thinking": False}, "temperature": 0.7}


@pytest.mark.parametrize("tools_by", ["native", "json_schema"])
async def test_no_more_output_is_asked_for_than_the_window_has_room_for(tools_by: str) -> None:
    async with endpoint(streams(chunk(reason="stop")), context_tokens=600, tools_by=tools_by) as (fake, provider):
        await all_of(provider, replace(turn(), max_output_tokens=500))
    assert fake.requests[0]["max_tokens"] == 300


async def test_what_policy_adds_to_the_body_is_in_every_request() -> None:
    answer = streams(chunk(content="hello", reason="stop"))
    async with endpoint(answer, answer, extra_body=EXTRA) as (fake, provider):
        await all_of(provider)
        await all_of(provider, turn(tools=(LOOK,)))
    for request in fake.requests:
        assert EXTRA.items() <= request.items()
        assert (request["model"], request["stream"]) == ("m", True)
    assert [tool["function"]["name"] for tool in fake.requests[1]["tools"]] == ["look"]


async def test_what_a_choice_among_tools_needs_goes_before_what_policy_adds() -> None:
    answers = (streams(chunk(content='{"answer": true}', reason="stop")), streams(chunk(content="hi", reason="stop")))
    async with endpoint(*answers, tools_by="json_schema", extra_body=EXTRA) as (fake, provider):
        await all_of(provider, turn(tools=(LOOK,)))
    assert [request["temperature"] for request in fake.requests] == [0, 0.7]
    assert all(request["chat_template_kwargs"] == EXTRA["chat_template_kwargs"] for request in fake.requests)


async def test_results_follow_their_calls_directly_as_the_endpoint_demands() -> None:
    asks = Message(Role.ASSISTANT, "", (ToolCall("c1", "look", "{}"), ToolCall("c2", "look", "{}")))
    one, two = Message(Role.TOOL, "1", (), "c1"), Message(Role.TOOL, "2", (), "c2")
    async with endpoint(streams(chunk(reason="stop"))) as (fake, provider):
        await all_of(provider, turn(*HELLO, asks, one, Message(Role.USER, "hurry"), two))
        sent = fake.requests[0]["messages"]
        assert [message["role"] for message in sent] == ["user", "assistant", "tool", "tool", "user"]
        assert sent[1]["content"] is None
        assert sent[1]["tool_calls"][1] == {
            "id": "c2",
            "type": "function",
            "function": {"name": "look", "arguments": "{}"},
        }
        assert sent[3] == {"role": "tool", "content": "2", "tool_call_id": "c2"}


async def test_what_the_system_says_later_stands_at_the_end_of_the_message_before_it() -> None:
    rules, late = Message(Role.SYSTEM, "Be brief."), Message(Role.SYSTEM, "About 5 seconds are left.")
    asks, result = Message(Role.ASSISTANT, "", (ToolCall("c1", "look", "{}"),)), Message(Role.TOOL, "1", (), "c1")
    said = Message(Role.ASSISTANT, "done")
    async with endpoint(*[streams(chunk(reason="stop"))] * 3) as (fake, provider):
        await all_of(provider, turn(rules, *HELLO, asks, result, late))
        await all_of(provider, turn(rules, rules, *HELLO, late, late))
        await all_of(provider, turn(*HELLO, said, late))
        after_a_result, after_a_question, after_an_answer = (request["messages"] for request in fake.requests)
    assert [one["role"] for one in after_a_result] == ["system", "user", "assistant", "tool"]
    assert after_a_result[-1]["content"] == "1\n\nAbout 5 seconds are left."
    assert [one["role"] for one in after_a_question] == ["system", "system", "user"]
    assert after_a_question[-1]["content"] == "hello\n\nAbout 5 seconds are left.\n\nAbout 5 seconds are left."
    assert [one["role"] for one in after_an_answer] == ["user", "assistant", "user"]


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ((), None),
        (("Retry-After: 7",), 7.0),
        (("Retry-After: 0.5",), 0.5),
        (("Retry-After: Wed, 21 Oct 2026 07:28:09 GMT", "Date: Wed, 21 Oct 2026 07:28:00 GMT"), 9.0),
        (("Retry-After: Wed, 21 Oct 2026 07:28:09 GMT",), None),
        (("Retry-After: later",), None),
    ],
)
async def test_too_many_requests_are_shed_with_the_wait_that_is_asked_for(
    headers: tuple[str, ...], wait: float | None
) -> None:
    error = await failure(says("429 Too Many Requests", '{"error": {"message": "slow down"}}', *headers))
    assert isinstance(error, Shed)
    assert error.retry_after == wait


async def test_an_exhausted_quota_is_no_load_and_not_shed() -> None:
    body = '{"error": {"message": "pay", "code": "insufficient_quota"}}'
    assert isinstance(await failure(says("429 Too Many Requests", body)), UpstreamFailed)


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        ("400 Bad Request", "context_tokens"),
        ("401 Unauthorized", "api_key_env"),
        ("403 Forbidden", "permissions"),
        ("404 Not Found", "base_url"),
        ("503 Unavailable", "provider's own"),
    ],
)
async def test_the_log_of_a_refusal_tells_what_to_check(
    status: str, advice: str, caplog: pytest.LogCaptureFixture
) -> None:
    error = await failure(says(status, '{"error": {"message": "because of http://10.0.0.1/"}}', "Retry-After: 3"))
    assert type(error) is (UpstreamRefused if status.startswith("4") else UpstreamFailed)
    assert status[:3] in str(error)
    assert ("because of …" in str(error)) == (status[:3] == "400")  # it is about what the tenant sent
    assert "10.0.0.1" not in str(error)
    assert "because of http://10.0.0.1/" in caplog.text
    assert advice in caplog.text
    assert error.retry_after == 3.0


@pytest.mark.parametrize(
    "answer",
    [
        streams("data: {not json\n\n"),
        streams('data: {"no": "choices"}\n\n'),
        streams("data: []\n\n"),
        streams(f"data: {'[' * 20_000}\n\n"),
        streams(f'data: {{"choices": {"[" * 950}{"]" * 950}}}\n\n'),
        says("500 Oops", "[" * 20_000),
        streams('data: {"choices": [{}]}\n\n'),
        streams('data: {"choices": 3}\n\n'),
        streams('data: {"error": {"message": "out of memory"}}\n\n'),
        streams(chunk(content="half an")),
        streams(),
        says("200 OK", "<html>a portal</html>"),
        hangs_up,
    ],
    ids=[
        "no-json",
        "no-choices",
        "a-list",
        "too-deep",
        "nearly-too-deep",
        "too-deep-a-refusal",
        "no-delta",
        "bad-choices",
        "error",
        "no-reason",
        "empty",
        "html",
        "hang-up",
    ],
)
async def test_what_is_no_complete_stream_is_a_failure_of_the_provider(answer: Any) -> None:
    assert isinstance(await failure(answer), UpstreamFailed)


@pytest.mark.parametrize(
    "delta",
    [
        {"content": 5},
        {"content": [{"type": "text", "text": "a"}]},
        {"tool_calls": [{"index": 0, "id": 7, "function": {"name": "look", "arguments": "{}"}}]},
        {"tool_calls": [{"index": 0, "id": "7", "function": {"name": 9, "arguments": "{}"}}]},
        {"tool_calls": [{"index": 0, "id": "7", "function": {"name": "look", "arguments": {"a": 1}}}]},
    ],
)
async def test_what_is_no_text_where_one_belongs_is_a_failure_of_the_provider(delta: dict[str, Any]) -> None:
    assert isinstance(await failure(streams(chunk(**delta), chunk(reason="stop"))), UpstreamFailed)


async def test_a_reason_that_is_no_text_is_a_failure_of_the_provider() -> None:
    reason: Any = ["stop"]
    assert isinstance(await failure(streams(chunk(content="a"), chunk(reason=reason))), UpstreamFailed)


@pytest.mark.parametrize("reason", ["abort", "error", "insufficient_system_resource"])
async def test_a_reason_that_says_that_the_provider_failed_is_its_failure(reason: str) -> None:
    for half in (chunk(content="half"), chunk(tool_calls=[part(0, '{"a": ', "c1", "look")])):
        error = await failure(streams(half, chunk(reason=reason)))
        assert isinstance(error, UpstreamFailed)
        assert reason in str(error)


async def test_a_reason_that_is_empty_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "COUNTED_WITHIN", 0.0)
    text = (chunk(content="a", reason=""), chunk(content="b", reason=""), chunk(reason="stop"))
    calls = (
        chunk(tool_calls=[part(0, "", "c1", "look")], reason=""),
        chunk(tool_calls=[part(0, '{"a":1}')], reason=""),
        chunk(reason="tool_calls"),
    )
    async with endpoint(streams(*text), streams(*calls)) as (_, provider):
        assert await all_of(provider) == [TextDelta("a"), TextDelta("b"), TurnFinished(FinishReason.STOP, 11, 1)]
        called, _ = await all_of(provider)
    assert called == ToolCall("c1", "look", '{"a":1}')


@pytest.mark.parametrize("kept_alive", ["retry: 3000\n\n", "data:\n\n", "event: ping\n\n", "id: 1\n\n: ping\n\n"])
async def test_an_event_without_data_is_passed_over(kept_alive: str) -> None:
    answer = (kept_alive, chunk(content="a"), kept_alive, chunk(reason="stop"))
    async with endpoint(streams(*answer)) as (_, provider):
        assert await all_of(provider) == [TextDelta("a"), TurnFinished(FinishReason.STOP, 11, 1)]


@pytest.mark.parametrize(
    "usage",
    [
        {},
        {"prompt_tokens": None, "completion_tokens": None},
        {"prompt_tokens": -1, "completion_tokens": 3},
        {"prompt_tokens": 10**30, "completion_tokens": 3},
        {"prompt_tokens": "many", "completion_tokens": 3},
    ],
)
async def test_an_answer_whose_tokens_are_not_counted_stands_and_they_are_estimated(usage: dict[str, Any]) -> None:
    counted = f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n"
    async with endpoint(streams(chunk(content="abcd"), chunk(reason="stop"), counted)) as (_, provider):
        assert await all_of(provider) == [TextDelta("abcd"), TurnFinished(FinishReason.STOP, 11, 1)]


@pytest.mark.parametrize(
    "more", ["{}", '{"choices": null}', '{"choices": [{"index": 0, "finish_reason": null, "filter": {}}]}']
)
async def test_a_chunk_that_says_nothing_is_passed_over(more: str) -> None:
    async with endpoint(streams(chunk(content="a"), f"data: {more}\n\n", chunk(reason="stop"))) as (_, provider):
        assert await all_of(provider) == [TextDelta("a"), TurnFinished(FinishReason.STOP, 11, 1)]


@pytest.mark.parametrize("more", [streams, endless_stream])
async def test_an_answer_that_is_complete_is_not_held_up_by_a_stream_that_does_not_end(
    more: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai, "COUNTED_WITHIN", 0.01)
    answer = (chunk(content="abcd"), chunk(reason="stop"))
    async with endpoint(more(*answer, ends=False)) as (fake, provider):
        assert await all_of(provider) == [TextDelta("abcd"), TurnFinished(FinishReason.STOP, 11, 1)]
        await fake.left()


async def test_halves_of_a_surrogate_pair_are_put_together_and_what_has_no_other_half_is_replaced() -> None:
    halves = (chunk(content="a\ud83d"), chunk(content="\ude00b\ud83d"), chunk(content="c\ude00"))
    call = chunk(tool_calls=[part(0, '{"a": "\ud83d', "c\ud83d", "look"), part(0, '\ude00"}')])
    async with endpoint(streams(*halves, call, chunk(reason="tool_calls"))) as (_, provider):
        *said, called, _ = await all_of(provider)
    assert said == [TextDelta("a"), TextDelta("😀b"), TextDelta("�c�")]
    assert called == ToolCall("c�", "look", '{"a": "😀"}')


async def test_a_text_that_comes_all_at_once_is_passed_on_in_pieces() -> None:
    async with endpoint(streams(chunk(content="é" * 500_000), chunk(reason="stop"))) as (_, provider):
        *said, _ = await all_of(provider)
    assert max(len(event.text) for event in said if isinstance(event, TextDelta)) < 50_000
    assert "".join(event.text for event in said if isinstance(event, TextDelta)) == "é" * 500_000


def endless(head: str, piece: str) -> Callable[[Endpoint, asyncio.StreamWriter], Awaitable[None]]:
    """Sends `piece` again and again, until its caller is gone or has taken far too much."""

    async def answer(endpoint: Endpoint, writer: asyncio.StreamWriter) -> None:
        writer.write(head.encode())
        for _ in range(64 * 1024 * 1024 // len(piece)):
            writer.write(framed(piece))
            await writer.drain()
        pytest.fail("all of it was read")

    return answer


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (STREAM, "a" * 65536),
        (STREAM, "data: a\n" * 8192),
        (STREAM.replace("200 OK", "500 Oops"), "a" * 65536),
    ],
    ids=["line", "event", "refusal"],
)
async def test_what_never_ends_is_given_up_and_its_connection_closed(head: str, piece: str) -> None:
    async with endpoint(endless(head, piece)) as (fake, provider):
        with pytest.raises(UpstreamFailed, match="in one event"):
            await all_of(provider)
        await fake.left()


PACKED = gzip.compress(bytes(200_000)).decode("latin-1")


@pytest.mark.parametrize("status", ["200 OK", "302 Found", "429 Too Many Requests", "500 Oops"])
@pytest.mark.parametrize("coding", ["gzip", "DEFLATE", "br", "identity, gzip", "identity\r\nContent-Encoding: zstd"])
async def test_a_packed_answer_is_refused_before_it_is_unpacked(status: str, coding: str) -> None:
    async with endpoint(says(status, PACKED, f"Content-Encoding: {coding}", "Location: /v1")) as (fake, provider):
        with pytest.raises(
            UpstreamFailed, match=rf"answered {status[:3]} with a body packed by \w+, though"
        ) as refused:
            await all_of(provider)
        await fake.left()
    assert coding.rpartition(" ")[2] in str(refused.value)
    assert "accept-encoding: identity\r\n" in fake.headers[0].lower()


@pytest.mark.parametrize("coding", ["identity", "Identity", ""])
async def test_an_answer_that_says_it_is_not_packed_is_read(coding: str) -> None:
    async def answer(endpoint: Endpoint, writer: asyncio.StreamWriter) -> None:
        head = STREAM.replace("\r\n\r\n", f"\r\nContent-Encoding: {coding}\r\n\r\n")
        writer.write(
            head.encode() + framed(chunk(content="a", reason="stop")) + framed("data: [DONE]\n\n") + b"0\r\n\r\n"
        )

    async with endpoint(answer) as (_, provider):
        assert await all_of(provider) == [TextDelta("a"), TurnFinished(FinishReason.STOP, 11, 1)]


async def test_a_long_stream_of_short_events_is_read_to_its_end_however_it_is_cut() -> None:
    async def answer(endpoint: Endpoint, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM.encode())
        for _ in range(300):
            for piece in (chunk(content="a" * 20_000)[:-1], "\n"):
                writer.write(framed(piece))
                await writer.drain()
        writer.write(framed(chunk(reason="stop")) + framed("data: [DONE]\n\n") + b"0\r\n\r\n")

    async with endpoint(answer) as (_, provider):
        *said, _ = await all_of(provider)
    assert sum(len(event.text) for event in said if isinstance(event, TextDelta)) == 6_000_000


async def test_an_endpoint_that_is_not_there_is_a_failure_of_the_provider(caplog: pytest.LogCaptureFixture) -> None:
    async with endpoint() as (_, provider):
        pass
    with pytest.raises(UpstreamFailed, match="could not be reached") as failed:
        await all_of(OpenAIProvider(provider._model, ""))
    assert "127.0.0.1" not in str(failed.value)
    assert "127.0.0.1" in caplog.text


def test_a_missing_key_is_told_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    model = OpenAIModel(provider="openai", model="m", api_key_env="SOME_KEY")
    with pytest.raises(ValueError, match="SOME_KEY"):
        provider_of(model)
    monkeypatch.setenv("SOME_KEY", " \n")
    with pytest.raises(ValueError, match="SOME_KEY"):
        provider_of(model)
    monkeypatch.setenv("SOME_KEY", "sesame\n")
    provider = provider_of(model)
    assert isinstance(provider, OpenAIProvider)
    assert provider._client.api_key == "sesame"


def test_a_key_that_no_header_can_hold_is_refused_and_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "open\nsesame")
    with pytest.raises(ValueError, match="SOME_KEY") as raised:
        provider_of(OpenAIModel(provider="openai", model="m", api_key_env="SOME_KEY"))
    assert "sesame" not in str(raised.value)


# --- tools_by: json_schema ---


async def test_a_choice_in_constrained_form_becomes_a_tool_call() -> None:
    answer = streams(chunk(content='{"tool": "look",'), chunk(content=' "arguments": {"a": 1}}'), chunk(reason="stop"))
    async with endpoint(answer, tools_by="json_schema") as (fake, provider):
        call, ended = await all_of(provider, turn(tools=(LOOK,)))
        assert isinstance(call, ToolCall)
        assert (call.name, json.loads(call.arguments_json)) == ("look", {"a": 1})
        assert isinstance(ended, TurnFinished)
        assert ended.finish_reason is FinishReason.TOOL_CALLS
    sent = fake.requests[0]
    options = sent["response_format"]["json_schema"]["schema"]["oneOf"]
    assert [option["properties"]["tool"]["const"] for option in options] == ["look", "answer"]
    assert options[0]["properties"]["arguments"]["properties"] == LOOK.schema["properties"]
    assert "tools" not in sent
    assert "look(a): Looks." in sent["messages"][-1]["content"]


@pytest.mark.parametrize(
    "choice",
    ['{"tool": "answer"}', '{"tool": "look", "argum', '{"tool": "other"}', "[]", "[" * 20_000],
    ids=lambda it: it[:9],
)
async def test_any_other_choice_is_followed_by_a_plain_answer(choice: str) -> None:
    first = streams(chunk(content=choice), chunk(reason="stop"), chunk(usage=(10, 5)))
    second = streams(chunk(content="hi"), chunk(reason="stop"), chunk(usage=(7, 1)))
    async with endpoint(first, second, tools_by="json_schema") as (fake, provider):
        events = await all_of(provider, turn(tools=(LOOK,)))
        assert events == [TextDelta("hi"), TurnFinished(FinishReason.STOP, 17, 6)]
        assert "response_format" not in fake.requests[1]
        assert all(sent["return_progress"] for sent in fake.requests)
        assert fake.requests[1]["max_tokens"] == 95


async def test_a_choice_gives_signs_of_life_while_it_is_written() -> None:
    async with endpoint(streams(chunk(content="{"), chunk(content='"'), ends=False), tools_by="json_schema") as (_, it):
        async with aclosing(it.stream(turn(tools=(LOOK,)))) as events:
            assert [await anext(events), await anext(events)] == [Writing(), Writing()]


async def test_a_required_choice_offers_no_way_out() -> None:
    answer = streams(chunk(content="{}"), chunk(reason="length"))
    async with endpoint(answer, tools_by="json_schema") as (fake, provider):
        with pytest.raises(UpstreamFailed, match="required"):
            await all_of(provider, turn(tools=(LOOK,), choice=ToolChoice.REQUIRED))
        assert len(fake.requests[0]["response_format"]["json_schema"]["schema"]["oneOf"]) == 1


async def test_a_call_that_was_made_is_not_made_again_and_history_is_spelled_out() -> None:
    asks = Message(Role.ASSISTANT, "Let me see.", (ToolCall("c1", "look", '{"a": 1}'),))
    first = streams(chunk(content='{"tool": "look", "arguments": {"a": 1}}'), chunk(reason="stop"))
    async with endpoint(first, streams(chunk(reason="stop")), tools_by="json_schema") as (fake, provider):
        events = await all_of(provider, turn(*HELLO, asks, Message(Role.TOOL, "42", (), "c1"), tools=(LOOK,)))
        assert [type(event) for event in events] == [TurnFinished]
        assert fake.requests[1]["messages"][1:] == [
            {"role": "assistant", "content": 'Let me see.\n{"tool": "look", "arguments": {"a": 1}}'},
            {"role": "user", "content": "Result of look: 42"},
        ]


def test_a_choice_is_read_or_left_however_deeply_it_and_the_history_are_nested() -> None:
    for depth in range(880, 1000):  # each of reading, comparing and writing ends at a depth of its own
        arguments = '{"a": ' * depth + "7" + "}" * depth
        asks = Message(Role.ASSISTANT, "", (ToolCall("c1", "look", arguments),))
        again = turn(*HELLO, asks, Message(Role.TOOL, "42", (), "c1"), tools=(LOOK,))
        assert chosen(f'{{"tool": "look", "arguments": {arguments}}}', again) is None
        assert chosen('{"tool": "look", "arguments": {"a": 1}}', turn(tools=(LOOK,))) is not None


async def test_closing_while_the_choice_is_written_closes_the_connection() -> None:
    async with endpoint(streams(chunk(content='{"to'), ends=False), tools_by="json_schema") as (fake, provider):
        reading = asyncio.ensure_future(all_of(provider, turn(tools=(LOOK,))))
        await fake.asked.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await fake.left()
