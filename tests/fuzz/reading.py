"""How targets make headers, JSON lines and event loops of bytes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

__all__ = ["headers", "json_lines", "run", "text"]

_T = TypeVar("_T")


def text(data: bytes) -> str:
    """`data` as gRPC reads header values: UTF-8, else Latin-1. Lone surrogates pass."""
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def headers(data: bytes) -> list[tuple[str, str | bytes]]:
    """The pairs that lines of `name: value` are; the values of names that end with `-bin` stay bytes."""
    pairs: list[tuple[str, str | bytes]] = []
    for line in data.split(b"\n"):
        name, _, value = line.partition(b": ")
        pairs.append((text(name), value if name.endswith(b"-bin") else text(value)))
    return pairs


def json_lines(data: bytes) -> Iterator[Any]:
    """The values of the lines that are JSON."""
    for line in data.splitlines():
        try:
            yield json.loads(line)
        except (ValueError, RecursionError):
            continue


def run(work: Coroutine[Any, Any, _T]) -> _T:
    """What `work` returns. Raises also what a callback or a task of its loop raised, which asyncio would only log."""
    unseen: list[BaseException] = []

    async def watched() -> _T:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, about: unseen.append(about.get("exception") or RuntimeError(str(about))))
        return await work

    result = asyncio.run(watched())
    if unseen:
        raise unseen[0]
    return result
