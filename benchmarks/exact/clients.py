"""The clients of `exact`: a process for each language that starts runs as it is told, and says how each ended."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

__all__ = ["Ended", "LoadClient", "NotBuilt", "built", "load_client"]

_ROOT = Path(__file__).resolve().parents[2]
_GO, _TYPESCRIPT = _ROOT / "clients" / "go", _ROOT / "clients" / "typescript"


class NotBuilt(Exception):
    """A client cannot be built here. The message says why."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended, as its client saw it."""

    held_ms: float
    """The client's deadline less the time that the grant lets the run use."""
    left_ms: float
    """What was left of the client's deadline when the answer was there."""
    outcome: str
    """Empty where there was no answer."""
    error: str
    began_at: float = 0.0
    """By the driver's monotonic clock."""
    ended_at: float = 0.0


class LoadClient:
    """A load program that runs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._waiting: dict[int, asyncio.Future[Ended]] = {}  # by the order's id
        self._count = 0

    async def run(self, deadline_ms: int, prompt: str, *, plain: bool) -> Ended:
        """Have it run an agent; `plain` by the generated stub alone."""
        assert self._process.stdin is not None
        self._count += 1
        ended = self._waiting[self._count] = asyncio.get_running_loop().create_future()
        order = {"id": self._count, "deadline_ms": deadline_ms, "prompt": prompt, "plain": plain}
        began_at = time.monotonic()
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        await self._process.stdin.drain()
        done: Ended = await ended
        return replace(done, began_at=began_at, ended_at=time.monotonic())

    async def listen(self) -> None:
        """Hand on what it says, until it ends."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            told = json.loads(line)
            ended = Ended(told["held_us"] / 1000, told["left_us"] / 1000, told["outcome"], told["error"])
            self._waiting.pop(told["id"]).set_result(ended)
        for waiting in self._waiting.values():
            waiting.set_exception(RuntimeError("a load program ended before its runs did"))


async def built(language: str, folder: Path) -> Sequence[str]:
    """The command that starts a language's load program, once it is built in `folder`. Raises NotBuilt."""
    if language == "go":
        await _make(["go", "build", "-o", str(folder / "load"), "./examples/load"], _GO)
        return [str(folder / "load")]
    if language == "node":
        lock, installed = _TYPESCRIPT / "package-lock.json", _TYPESCRIPT / "node_modules" / ".package-lock.json"
        if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
            await _make(["npm", "ci"], _TYPESCRIPT)
        await _make(["npm", "run", "build"], _TYPESCRIPT)
        return ["node", str(_TYPESCRIPT / "dist" / "examples" / "load.js")]
    return [sys.executable, "-m", "benchmarks.exact.load"]


@asynccontextmanager
async def load_client(command: Sequence[str], environment: Mapping[str, str]) -> AsyncIterator[LoadClient]:
    """Run a load program for the block, its connections open."""
    path = os.pathsep.join(filter(None, [str(_ROOT), str(_ROOT / "services"), os.environ.get("PYTHONPATH")]))
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )
    assert process.stdout is not None
    try:
        if not await process.stdout.readline():
            raise RuntimeError(f"{command[0]} ended before it was ready, with exit code {await process.wait()}")
        client = LoadClient(process)
        listening = asyncio.create_task(client.listen())
        try:
            yield client
        finally:
            listening.cancel()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _make(command: Sequence[str], folder: Path) -> None:
    if shutil.which(command[0]) is None:
        raise NotBuilt(f"not installed: {command[0]}")
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said: Any = (await process.communicate())[0]
    if process.returncode:
        raise NotBuilt(f"{' '.join(command)} failed: {said.decode(errors='replace')[-500:]}")
