"""The services as processes of their own, seen from outside: what they report, what they log, what the kernel says they do."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deadlinemesh import telemetry
from deadlinemesh.admission import Wait
from deadlinemesh.telemetry import CallEnded, CallStarted, Event

__all__ = ["GUARD", "Life", "Service", "alive", "below", "open_files"]

GUARD = 20.0
"""Seconds after which what should come is given up. Nothing waits that long unless it is broken."""

START_GUARD = 60.0
"""Likewise for a service that starts: to load what it needs takes long on a busy machine."""

_EVENTS: dict[str, Any] = {name: getattr(telemetry, name) for name in telemetry.__all__} | {"Wait": Wait}


@dataclass(slots=True)
class Life:
    """One process of a service, from its start to its end, and what it has reported."""

    service: str
    process: asyncio.subprocess.Process
    events_file: Path
    port: int
    events: list[Event] = field(default_factory=list)
    killed_at: float | None = None
    frozen: list[tuple[float, float]] = field(default_factory=list)
    """From when to when it was stopped by SIGSTOP."""
    files_at_rest: int = 0
    """How many files it held when its first scenario was over."""
    _read_to: int = 0

    def read(self) -> list[Event]:
        """All that it has reported so far."""
        with self.events_file.open("rb") as lines:
            lines.seek(self._read_to)
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                self._read_to += len(line)
                told = json.loads(line)
                self.events.append(_EVENTS[told.pop("event")](**told))
        return self.events

    def open_calls(self) -> list[CallStarted]:
        """Calls that have begun and not ended, as far as is known. None where it was killed: nothing of them can be at work."""
        if self.killed_at is not None:
            return []
        begun: dict[tuple[str, str, float], CallStarted] = {}
        for event in self.events:
            if isinstance(event, CallStarted):
                begun[event.method, event.run_id, event.started_at] = event
            elif isinstance(event, CallEnded):
                begun.pop((event.method, event.run_id, event.started_at), None)
        return list(begun.values())

    def thawed_at(self, instant: float) -> float:
        """The instant, or when the process went on if it was stopped then: until then it could do nothing."""
        return next((until for since, until in self.frozen if since <= instant <= until), instant)


class Service:
    """One service, through all its lives. A new one listens on a port of its own: who calls it comes through a proxy."""

    def __init__(
        self, name: str, folder: Path, environment: dict[str, str], arguments: Sequence[str] | None = None
    ) -> None:
        self.name = name
        self._arguments = ("serve", name) if arguments is None else tuple(arguments)
        self.lives: list[Life] = []
        self._folder = folder
        self._environment = environment

    @property
    def life(self) -> Life:
        """The present one."""
        return self.lives[-1]

    @property
    def log(self) -> str:
        """What it has logged, in all its lives."""
        return self._log_file.read_text()

    @property
    def _log_file(self) -> Path:
        return self._folder / f"{self.name}.log"

    async def start(self) -> Life:
        """Begin a life; returns when it is ready."""
        events_file = self._folder / f"{self.name}-{len(self.lives)}.events"
        events_file.touch()
        with self._log_file.open("a") as log:
            process = await asyncio.create_subprocess_exec(
                # It ends with the tests, however these end.
                *(sys.executable, "-m", "deadlinemesh.local.tied", "deadlinemesh.cli", *self._arguments, "--announce"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=self._environment | {"DMESH_EVENTS_FILE": str(events_file)},
            )
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), START_GUARD)
        assert line, self.log
        self.lives.append(Life(self.name, process, events_file, json.loads(line)["port"]))
        return self.life

    async def kill(self) -> None:
        """End it as a failing machine does."""
        self.life.killed_at = time.monotonic()
        self.life.process.kill()
        await self.life.process.wait()

    @property
    def is_frozen(self) -> bool:
        """Whether it is stopped now."""
        return bool(self.life.frozen) and self.life.frozen[-1][1] == float("inf")

    def freeze(self) -> None:
        """Stop it where it stands: it holds all its connections, and does nothing."""
        self.life.frozen.append((time.monotonic(), float("inf")))
        self.life.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        since, _ = self.life.frozen.pop()
        self.life.frozen.append((since, time.monotonic()))
        self.life.process.send_signal(signal.SIGCONT)

    async def end(self) -> int:
        """Have it drain and end; its exit code."""
        if not self.lives:
            return 0
        life = self.life
        if life.process.returncode is None:
            life.process.send_signal(signal.SIGCONT)
            life.process.terminate()
        try:
            return await asyncio.wait_for(life.process.wait(), GUARD)
        finally:
            if life.process.returncode is None:
                life.process.kill()
                await life.process.wait()


def alive(pid: int) -> bool:
    """Whether the process runs, or could: what is dead and only waits to be buried does not count."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def open_files(pid: int) -> int:
    """How many files and sockets the process holds."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def below(pid: int) -> int:
    """How many living processes descend from it."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and alive(int(folder.name)):
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # gone meanwhile
                continue
    family = {pid}
    while grown := {child for child, parent in parents.items() if parent in family} - family:
        family |= grown
    return len(family) - 1
