"""A model turn's request, to the domain's words and back: lines of JSON, each a message, or a tool's specification."""

from __future__ import annotations

import json
from collections.abc import Coroutine, Sequence
from typing import Any

from google.protobuf import json_format
from tests.fuzz.reading import json_lines

from deadlinemesh.errors import InvalidRequest
from deadlinemesh.llm_proxy.checking import check
from deadlinemesh.llm_proxy.providers.choosing import spelled_out
from deadlinemesh.llm_proxy.providers.fitting import fitted
from deadlinemesh.llm_proxy.servicer import _turn
from deadlinemesh.transport.codec import add_message, message_from_wire, tool_spec_from_wire, tool_spec_to_wire
from deadlinemesh.transport.status import status_of
from deadlinemesh.v1 import common_pb2, llm_proxy_pb2
from deadlinemesh.vocabulary import (
    LONGEST_ARGUMENTS,
    LONGEST_CALL_ID,
    LONGEST_TOOL_NAME,
    Message,
    Role,
    history_violations,
)

JSON_LINES = True
ROOM_TOKENS = 200


def target(data: bytes) -> None:
    request = llm_proxy_pb2.GenerateRequest()
    for line in json_lines(data.replace(b"\\ud", b"\\u0d")):  # no message holds lone surrogates
        _add(request, line)
    messages = [message_from_wire(message) for message in request.messages]
    again = llm_proxy_pb2.GenerateRequest()
    for message in messages:
        add_message(again.messages, message)
    for message, written, sent in zip(messages, again.messages, request.messages, strict=True):
        assert message_from_wire(written) == message
        assert message.role is None or written == sent
    valid = not history_violations(messages, "messages")
    assert valid == _is_history(messages)
    try:
        check(_driven(_turn(request)))
    except InvalidRequest as refused:
        assert refused.violations
        status_of(refused)
    if valid:
        spelled_out(messages)
        assert all(message in messages for message in messages if message.role is Role.SYSTEM)
        assert not history_violations(fitted(messages, ROOM_TOKENS), "messages")
    for tool in request.tools:
        _check_tool(tool)


def _driven(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What `coroutine` returns, which waits for nothing but its turn."""
    try:
        while True:
            coroutine.send(None)
    except StopIteration as done:
        return done.value


def _add(request: llm_proxy_pb2.GenerateRequest, line: Any) -> None:
    is_tool = isinstance(line, dict) and "arguments_schema_json" in line
    try:
        json_format.ParseDict(line, request.tools.add() if is_tool else request.messages.add())
    except (json_format.ParseError, AttributeError, OverflowError, TypeError, ValueError):
        del (request.tools if is_tool else request.messages)[-1]


def _check_tool(tool: common_pb2.ToolSpec) -> None:
    try:
        spec = tool_spec_from_wire(tool)
    except ValueError:
        return
    written = tool_spec_to_wire(spec)
    assert json.dumps(tool_spec_from_wire(written).schema) == json.dumps(spec.schema)


def _is_history(messages: Sequence[Message]) -> bool:
    """What `history_violations` checks, in another way."""
    open_ids: list[str] = []
    used: list[str] = []
    for message in messages:
        asks = [call.id for call in message.tool_calls]
        match message.role:
            case None:
                return False
            case Role.TOOL:
                if message.tool_call_id not in open_ids or asks:
                    return False
                open_ids.remove(message.tool_call_id)
                continue
            case Role.ASSISTANT:
                if open_ids or not all(map(_is_call, message.tool_calls)):
                    return False
            case _:
                if asks:
                    return False
        if message.tool_call_id or len({*used, *asks}) < len(used) + len(asks):
            return False
        used += asks
        open_ids += asks
    return not open_ids


def _is_call(call: Any) -> bool:
    try:
        named = 0 < len(call.id) <= LONGEST_CALL_ID and 0 < len(call.name) <= LONGEST_TOOL_NAME
        brief = len(call.arguments_json) <= LONGEST_ARGUMENTS
        return named and brief and isinstance(json.loads(call.arguments_json), dict)
    except (ValueError, RecursionError):
        return False
