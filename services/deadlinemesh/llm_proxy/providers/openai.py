"""A provider for any endpoint that speaks OpenAI's chat completions.

The SDK's retries and timeouts are off: the scope of the call owns the time. Leaving the stream
closes its connection. That tells the provider to stop.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from typing import Any

import httpx2  # the SDK's own
import openai
from openai import DEFAULT_CONNECTION_LIMITS, AsyncOpenAI, DefaultAsyncHttpxClient
from openai._streaming import ServerSentEvent, SSEDecoder

from deadlinemesh.errors import Shed, UpstreamFailed, UpstreamRefused, without_addresses
from deadlinemesh.llm_proxy.providers.choosing import asking, choice_schema, chosen, spelled_out
from deadlinemesh.llm_proxy.providers.deltas import Completion
from deadlinemesh.llm_proxy.providers.fitting import fitted, room_for_input, room_for_output, tokens_at_most
from deadlinemesh.llm_proxy.providers.proxies import transport_to
from deadlinemesh.llm_proxy.providers.tokens import estimated_tokens
from deadlinemesh.llm_proxy.providers.unusable import MissingKey
from deadlinemesh.policy.environment import secret
from deadlinemesh.policy.model import OpenAIModel
from deadlinemesh.telemetry.logs import cut
from deadlinemesh.transport.retry_after import retry_after
from deadlinemesh.vocabulary import (
    FinishReason,
    Message,
    ModelEvent,
    Role,
    TextDelta,
    ToolChoice,
    ToolSpec,
    TurnFinished,
    TurnRequest,
    Writing,
)

__all__ = ["OpenAIProvider"]

_LOG = logging.getLogger("deadlinemesh.llm_proxy")

_NO_KEY = "none"
"""Key for an endpoint that needs none. The SDK requires a key, and such an endpoint ignores it."""

_ADVICE = {
    400: "it refused the request: check `model`, `context_tokens` and the tools' schemas",
    401: "it refused the key: check the environment variable named by `api_key_env`",
    403: "the key may not use this model: check the key's permissions and `model`",
    404: "it knows no such model or path: check `base_url` and `model`",
}

_ABOUT_THE_REQUEST = (400, 413, 422)
"""HTTP statuses with a message about the tenant's request."""

_PASSING = (408, 409, 425)
"""HTTP statuses of the 4xx range that may pass: a retry can succeed."""

_TELL_PROGRESS = {"return_progress": True}
"""Body field for llama.cpp. It notices a closed connection only when it writes, and without this
field it writes nothing while it reads a prompt, possibly for many seconds. The other servers of
models that ignore tools ignore this field too."""

_LONGEST_EVENT = 4 * 1024 * 1024
"""Bytes of an event of the stream, or of the body of a refusal. The SDK gathers an event in memory,
and copies it with each new piece."""

_LONGEST_NAME = 80
"""Characters of a provider's own term in our error messages."""

COUNTED_WITHIN = 1.0
"""Seconds after the end of an answer in which its provider's token count may come. Some providers
send no count and do not end the stream."""

_MALFORMED = (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError)
"""Errors of reading an unvalidated chunk, and of the SDK for a chunk that is no JSON or too deeply
nested."""


class OpenAIProvider:
    """Streams from the endpoint of `model`."""

    def __init__(self, model: OpenAIModel, api_key: str) -> None:
        self._model = model
        self._client = _Client(
            base_url=model.base_url,
            api_key=api_key or _NO_KEY,
            max_retries=0,
            timeout=None,
            http_client=DefaultAsyncHttpxClient(
                event_hooks={"response": [self._bound]},
                timeout=None,
                transport=transport_to(model.base_url, DEFAULT_CONNECTION_LIMITS),
            ),
            default_headers={"Accept-Encoding": "identity"},  # `_bound` counts plain bytes
        )

    @classmethod
    def from_environment(cls, model: OpenAIModel) -> OpenAIProvider:
        """A provider with the key from the environment.

        Raises MissingKey if the environment has no valid key, and UnusableProxy if the endpoint's
        proxy cannot be used.
        """
        try:
            key = secret(model.api_key_env) if model.api_key_env else ""
        except ValueError as error:
            raise MissingKey(f"the key of {model.model}: {error}: correct it and start the llm-proxy again") from None
        if model.api_key_env and not key:
            raise MissingKey(
                f"the key of {model.model} is missing: set {model.api_key_env} in the llm-proxy's environment and start it"
                " again, or say `api_key_env: ''` in policy where none is needed"
            )
        return cls(model, key)

    async def stream(self, turn: TurnRequest) -> AsyncGenerator[ModelEvent, None]:
        offers = bool(turn.tools) and turn.tool_choice is not ToolChoice.NONE
        tools = _native(turn) if offers else {}
        room = room_for_input(self._model.context_tokens, turn.max_output_tokens)
        turn = replace(turn, max_output_tokens=room_for_output(self._model.context_tokens, turn.max_output_tokens))
        messages = fitted(turn.messages, room - tokens_at_most(json.dumps(tools)))
        if self._model.tools_by == "native":
            events = self._complete(messages, turn.max_output_tokens, tools)
        elif offers:
            events = self._choose(turn, messages)
        else:
            events = self._complete(spelled_out(messages), turn.max_output_tokens, _TELL_PROGRESS)
        async with aclosing(events):
            async for event in events:
                yield event

    async def aclose(self) -> None:
        await self._client.close()

    async def _choose(self, turn: TurnRequest, messages: Sequence[Message]) -> AsyncGenerator[ModelEvent, None]:
        """Let the model choose a tool. If it chooses none, let it answer.

        `messages` are those of `turn`, fitted to the context window.
        """
        schema = {"type": "json_schema", "json_schema": {"name": "choice", "schema": choice_schema(turn)}}
        options = {"response_format": schema, "temperature": 0, **_TELL_PROGRESS}
        written: list[str] = []
        choice: TurnFinished | None = None
        async with aclosing(self._complete(asking(turn, messages), turn.max_output_tokens, options)) as events:
            async for event in events:
                match event:
                    case TextDelta(text):
                        yield Writing()
                        written.append(text)
                    case TurnFinished():
                        choice = event
        assert choice is not None
        call = chosen("".join(written), turn)
        if call is not None:
            yield call
            yield TurnFinished(FinishReason.TOOL_CALLS, choice.input_tokens, choice.output_tokens)
            return
        if turn.tool_choice is ToolChoice.REQUIRED:
            raise UpstreamFailed(f"{self._model.model} was required to choose a tool and chose none")
        left = max(1, turn.max_output_tokens - choice.output_tokens)
        async with aclosing(self._complete(spelled_out(messages), left, _TELL_PROGRESS)) as events:
            async for event in events:
                match event:
                    case TurnFinished(reason, read, wrote):
                        yield TurnFinished(reason, choice.input_tokens + read, choice.output_tokens + wrote)
                    case _:
                        yield event

    async def _complete(
        self, messages: Sequence[Message], max_output_tokens: int, options: Mapping[str, Any]
    ) -> AsyncGenerator[ModelEvent, None]:
        """Stream one completion.

        `options` are further fields of the request's body. They override those of policy.
        """
        wire = _wire(messages)
        completion = Completion(estimated_tokens(json.dumps([wire, options.get("tools", [])], ensure_ascii=False)))
        create: Any = self._client.chat.completions.create  # no overload fits a computed request
        with self._failures():
            chunks = await create(
                model=self._model.model,
                messages=wire,
                stream=True,
                stream_options={"include_usage": True},
                **{self._limit: max_output_tokens},
                extra_body={**self._model.extra_body, **options},
            )
            async with chunks, aclosing(_to_the_end(aiter(chunks), completion)) as wanted:
                async for chunk in wanted:
                    for event in completion.feed(chunk):
                        yield event
        yield completion.end()

    async def _bound(self, response: httpx2.Response) -> None:
        # httpx decompresses a body that is marked as compressed, even if it was not asked for. That
        # happens after the bound, so few counted bytes could become very many.
        codings = response.headers.get_list("content-encoding", split_commas=True)
        if packed := [coding for coding in codings if coding.strip().lower() not in ("", "identity")]:
            raise UpstreamFailed(
                f"the model provider of {self._model.model} answered {response.status_code} with a body packed by"
                f" {', '.join(packed)[:_LONGEST_NAME]}, though only `Accept-Encoding: identity` was offered"
            )
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _Bounded(response.stream, self._model.model)

    @property
    def _limit(self) -> str:
        # OpenAI's newer models refuse the old name, also on Azure. Other servers know only the old.
        host = httpx2.URL(self._model.base_url).host
        return "max_completion_tokens" if host.endswith(("openai.com", ".openai.azure.com")) else "max_tokens"

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Context manager that maps the SDK's errors to the mesh's.

        Cancellation passes unchanged.
        """
        who = f"the model provider of {self._model.model}"
        try:
            yield
        except openai.APIStatusError as error:
            status, wait = error.status_code, retry_after(error.response.headers)
            if status == 429 and error.code != "insufficient_quota":
                raise Shed(f"{who} is limiting requests", retry_after=wait) from error
            advice = _ADVICE.get(status, "the failure is the provider's own")
            self._log(f"answered {status}: {advice}", error.message)
            kind = UpstreamRefused if 400 <= status < 500 and status not in _PASSING else UpstreamFailed
            # A tenant needs the provider's words about its request, but not about a key or a path.
            said = f": {without_addresses(error.message)}" if status in _ABOUT_THE_REQUEST else ""
            raise kind(f"{who} answered {status}{said}", retry_after=wait) from error
        except openai.APIConnectionError as error:
            self._log("could not be reached or went away", error.__cause__ or error)
            raise UpstreamFailed(f"{who} could not be reached or went away") from error
        except openai.APIError as error:
            self._log("failed in mid-stream", error.message)
            raise UpstreamFailed(f"{who} failed in mid-stream: {without_addresses(error.message)}") from error
        except _MALFORMED as error:
            self._log("sent what is not a chat completion stream", error)
            raise UpstreamFailed(f"{who} sent what is not a chat completion stream") from error

    def _log(self, what: str, words: object) -> None:
        """Log the provider's address and message for the operator. Tenants do not see them."""
        _LOG.warning("the provider of %s at %s %s: %s", self._model.model, self._model.base_url, what, cut(words))


class _Client(AsyncOpenAI):
    def _make_sse_decoder(self) -> SSEDecoder:
        return _Decoder()


class _Decoder(SSEDecoder):
    """Skips events without data, such as keep-alives.

    The SDK would treat them as broken chunks (openai-python 2722).
    """

    def decode(self, line: str) -> ServerSentEvent | None:
        event = super().decode(line)
        return event if event is not None and event.data.strip() else None


class _Bounded(httpx2.AsyncByteStream):
    """The body of a response.

    Raises UpstreamFailed if an event has more than _LONGEST_EVENT bytes.
    """

    def __init__(self, stream: httpx2.AsyncByteStream, model: str) -> None:
        self._stream = stream
        self._model = model

    async def __aiter__(self) -> AsyncIterator[bytes]:
        length, before = 0, b""
        async for piece in self._stream:
            seen = before + piece
            end = max(map(seen.rfind, (b"\n\n", b"\r\r", b"\r\n\r\n")))
            length = length + len(piece) if end < 0 else len(seen) - end
            if length > _LONGEST_EVENT:
                raise UpstreamFailed(
                    f"the model provider of {self._model} sent more than {_LONGEST_EVENT} bytes in one event"
                )
            before = seen[-3:]  # the end of an event may be split between two pieces
            yield piece

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _to_the_end(chunks: AsyncIterator[Any], completion: Completion) -> AsyncGenerator[Any, None]:
    """Yield the chunks up to the answer's end, and those up to COUNTED_WITHIN seconds after it."""
    until: float | None = None
    while True:
        if until is None and completion.is_answered:
            until = asyncio.get_running_loop().time() + COUNTED_WITHIN
        try:
            async with asyncio.timeout_at(until):
                chunk = await anext(chunks)
        except (StopAsyncIteration, TimeoutError):
            return
        yield chunk


def _native(turn: TurnRequest) -> dict[str, Any]:
    return {"tools": [_offer(tool) for tool in turn.tools], "tool_choice": turn.tool_choice.value}


def _offer(tool: ToolSpec) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.schema}
    return {"type": "function", "function": function}


def _wire(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as fields of the endpoint.

    The results of an assistant's calls must follow it directly.
    """
    ordered: list[Message] = []
    held_back: list[Message] = []
    open_calls: set[str] = set()
    for message in messages:
        if open_calls and message.role is not Role.TOOL:
            held_back.append(message)
            continue
        ordered.append(message)
        open_calls.discard(message.tool_call_id)
        open_calls.update(call.id for call in message.tool_calls)
        if not open_calls:
            ordered += held_back
            held_back.clear()
    return [_wire_message(message) for message in _with_system_first((*ordered, *held_back))]


def _with_system_first(messages: Sequence[Message]) -> list[Message]:
    """The messages, with later system messages appended to the message before them.

    Many models' templates refuse a system message except at the beginning (Qwen's do). Some refuse
    a user's message after a tool's result. After an assistant's message it becomes a user's
    message.
    """
    told: list[Message] = []
    for message in messages:
        last = told[-1].role if told else Role.SYSTEM
        if message.role is not Role.SYSTEM or last is Role.SYSTEM:
            told.append(message)
        elif last is Role.ASSISTANT:
            told.append(replace(message, role=Role.USER))
        else:
            told[-1] = replace(told[-1], content=f"{told[-1].content}\n\n{message.content}")
    return told


def _wire_message(message: Message) -> dict[str, Any]:
    assert message.role is not None
    wire: dict[str, Any] = {"role": message.role.value, "content": message.content}
    if message.tool_calls:
        wire["content"] = message.content or None
        wire["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments_json}}
            for call in message.tool_calls
        ]
    if message.role is Role.TOOL:
        wire["tool_call_id"] = message.tool_call_id
    return wire
