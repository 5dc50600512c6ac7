"""Messages of too many parts are found before they are parsed."""

from __future__ import annotations

import random
import time

import pytest

from deadlinemesh.errors import InvalidRequest
from deadlinemesh.transport.crowded import LOOKED_AT, is_crowded, unless_crowded
from deadlinemesh.v1 import common_pb2, orchestrator_pb2

PARTS = {4: {3: None}}
MOST = 32_768


def request(messages: int, calls: int) -> bytes:
    call = common_pb2.ToolCall(id="c", name="look", arguments_json="{}")
    message = common_pb2.Message(role=common_pb2.ROLE_ASSISTANT, content="x" * 100, tool_calls=[call] * calls)
    return orchestrator_pb2.RunRequest(prompt="x", history=[message] * messages).SerializeToString()


def nested(inner: bytes) -> bytes:
    length, encoded = len(inner), b""
    while length >= 0x80:
        encoded, length = encoded + bytes([length & 0x7F | 0x80]), length >> 7
    return b"\x22" + encoded + bytes([length]) + inner


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"\x22\x00" * 1_900_000, id="empty messages"),
        pytest.param(b"\x32\x00" * 1_900_000, id="empty tools"),
        pytest.param(nested(b"\x1a\x00" * 1_900_000), id="empty calls of one message"),
        pytest.param(nested(b"\x1a\x00" * 20_000) * 90, id="empty calls of several messages"),
        pytest.param(b"\x78\x00" * 1_900_000, id="unknown fields"),
        pytest.param(b"\x7b" + b"\x22\x00" * 1_900_000 + b"\x7c", id="an unknown group"),
        pytest.param(b"\x3a\x00" * 1_900_000, id="the same field again and again"),
    ],
)
def test_a_crowded_message_is_found_at_once(raw: bytes) -> None:
    began = time.thread_time()
    assert is_crowded(raw, PARTS, MOST)
    assert time.thread_time() - began < 0.1  # 10 ms; parsed, it takes 80


@pytest.mark.parametrize(("messages", "calls"), [(4096, 1), (1, 4096), (64, 64), (4096, 0)])
def test_a_request_with_all_that_it_may_have_is_not_crowded(messages: int, calls: int) -> None:
    assert not is_crowded(request(messages, calls), PARTS, MOST)


def test_what_is_garbled_is_left_to_the_parser() -> None:
    draw = random.Random(0)
    for _ in range(20_000):
        is_crowded(draw.randbytes(draw.randrange(100)), PARTS, 10)


def test_a_crowded_message_becomes_the_error_to_refuse_with() -> None:
    deserialize = unless_crowded(orchestrator_pb2.RunRequest.FromString, "history", PARTS, MOST)
    assert isinstance(deserialize(b"\x22\x00" * LOOKED_AT), InvalidRequest)
    assert deserialize(request(2, 2)).prompt == "x"
