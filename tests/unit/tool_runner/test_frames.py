"""How a worker's socket carries calls and answers, whole or not at all."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator

import pytest

from deadlinemesh.tool_runner.workers.frames import MOST_HEAD_BYTES, Broken, packed, receive, receive_blocking


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The tool-runner's end and the worker's."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


Ends = tuple[socket.socket, socket.socket]


async def test_frames_arrive_in_order_with_their_bodies_as_they_were(ends: Ends) -> None:
    ours, theirs = ends
    theirs.sendall(packed({"kind": "begun", "é": 1}) + packed({"kind": "answer"}, b"\0\xff"))
    assert await receive(ours, 10) == ({"kind": "begun", "é": 1}, b"")
    assert await receive(ours, 10) == ({"kind": "answer"}, b"\0\xff")


async def test_a_frame_larger_than_the_sockets_buffer_arrives_whole(ends: Ends) -> None:
    ours, theirs = ends
    body = bytes(range(256)) * 20_000
    sending = threading.Thread(target=theirs.sendall, args=(packed({}, body),))
    sending.start()
    assert await receive(ours, len(body)) == ({}, body)
    sending.join()


async def test_a_worker_reads_what_the_tool_runner_sends(ends: Ends) -> None:
    ours, theirs = ends
    await asyncio.get_running_loop().sock_sendall(ours, packed({"call": 1}, b"{}"))
    assert receive_blocking(theirs) == ({"call": 1}, b"{}")
    ours.shutdown(socket.SHUT_WR)
    assert receive_blocking(theirs) is None


@pytest.mark.parametrize("sent", [b"", b"\0\0", packed({"a": 1})[:-1], packed({"a": 1}, b"xyz")[:-1]])
async def test_an_end_in_the_middle_of_a_frame_is_an_end(ends: Ends, sent: bytes) -> None:
    ours, theirs = ends
    theirs.sendall(sent)
    theirs.close()
    assert await receive(ours, 100) is None


@pytest.mark.parametrize(
    "sent",
    [
        packed({}, b"12345678901"),
        packed({"long": "x" * MOST_HEAD_BYTES}),
        b"\0\0\0\x03\0\0\0\0abc",
        b"\0\0\0\x02\0\0\0\0[]",
        b"\0\0\0\x02\0\0\0\0\xff\xff",
        b"\0\0\x07\xd0\0\0\0\0" + b"[" * 2000,
        b"\xff" * 8,
    ],
)
async def test_what_is_no_frame_or_too_large_is_refused_before_it_is_read(ends: Ends, sent: bytes) -> None:
    ours, theirs = ends
    theirs.sendall(sent)
    with pytest.raises(Broken):
        await receive(ours, 10)
