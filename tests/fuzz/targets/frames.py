"""What comes over a worker's socket, read from both ends: raw bytes."""

from __future__ import annotations

import socket
from typing import Any

from tests.fuzz.reading import run

from deadlinemesh.tool_runner.workers.frames import Broken, packed, receive, receive_blocking

MOST_BYTES = 2000

Frame = tuple[dict[str, Any], bytes]


def target(data: bytes) -> None:
    frames = run(_read(data))
    assert all(len(body) <= MOST_BYTES for _, body in frames)
    theirs = _read_blocking(data)
    # The tool-runner believes less than its worker, so it may end sooner, but reads nothing else.
    assert list(map(repr, frames)) == list(map(repr, theirs[: len(frames)]))
    for head, body in frames:
        again = run(_read(packed(head, body)))
        assert repr(again) == repr([(head, body)]) or "\\ud" in repr(head)


async def _read(data: bytes) -> list[Frame]:
    frames: list[Frame] = []
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours:
        with theirs:
            theirs.sendall(data)
        try:
            while (frame := await receive(ours, MOST_BYTES)) is not None:
                frames.append(frame)
        except Broken:
            pass
    return frames


def _read_blocking(data: bytes) -> list[Frame]:
    frames: list[Frame] = []
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            theirs.sendall(data)
        try:
            while (frame := receive_blocking(ours)) is not None:
                frames.append(frame)
        except Broken:
            pass
    return frames
