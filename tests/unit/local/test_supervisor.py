"""Programs that are started, restarted and ended together: real processes, as small as can be."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import pytest

from deadlinemesh.local import supervisor as supervisors
from deadlinemesh.local.supervisor import Program, ProgramFailed, Supervisor
from deadlinemesh.local.tied import ORPHANED

SERVING = "print('port', 7, flush=True); import signal; signal.pause()"


def program(name: str, code: str) -> Program:
    def port_in(line: str) -> int | None:
        return int(line.split()[1]) if line.startswith("port ") else None

    return Program(name, lambda port: (sys.executable, "-c", code, str(port)), port_in, lambda port: os.environ)


class Told:
    """What a supervisor says, to be waited for."""

    def __init__(self) -> None:
        self.reports: list[str] = []
        self.lines: list[tuple[str, str]] = []
        self.restarts = 0
        self._changed = asyncio.Event()

    def report(self, what: str) -> None:
        self.reports.append(what)
        self._changed.set()

    def restarted(self) -> None:
        self.restarts += 1
        self._changed.set()

    async def after_restarts(self, count: int) -> None:
        while self.restarts < count:
            self._changed.clear()
            await self._changed.wait()


@pytest.fixture
async def told() -> Told:
    return Told()


@pytest.fixture
async def supervisor(told: Told) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(told.report, lambda name, line: told.lines.append((name, line)))
    yield supervisor
    supervisor.kill()
    await supervisor.end()


async def test_a_program_is_started_when_it_says_its_port(supervisor: Supervisor, told: Told) -> None:
    child = await supervisor.start(program("one", f"print('warming up'); {SERVING}"))
    assert child.port == 7
    assert told.lines == [("one", "warming up")]


async def test_a_program_that_ends_before_it_is_ready_is_told_with_its_log(supervisor: Supervisor) -> None:
    with pytest.raises(ProgramFailed) as failed:
        await supervisor.start(program("one", "import sys; print('no such key', file=sys.stderr); sys.exit(3)"))
    assert str(failed.value) == "one did not start: exit code 3\n    no such key"


async def test_the_first_failure_of_several_is_told_when_all_are_decided(supervisor: Supervisor) -> None:
    with pytest.raises(ProgramFailed, match="two did not start"):
        await supervisor.start_all(program("one", SERVING), program("two", "raise SystemExit(1)"))
    assert supervisor.children["one"].port == 7


async def test_a_program_that_is_never_ready_is_given_up(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisors, "START_GUARD", 0.05)
    with pytest.raises(ProgramFailed, match="one was not ready"):
        await supervisor.start(program("one", "import signal; signal.pause()"))


async def test_a_program_that_dies_is_started_again_on_its_port(supervisor: Supervisor, told: Told) -> None:
    code = (
        "import sys; print('port', sys.argv[1] if sys.argv[1] != '0' else 7, flush=True); import signal; signal.pause()"
    )
    child = await supervisor.start(program("one", code))
    before = child.pid
    keeping = asyncio.ensure_future(supervisor.keep(told.restarted))
    child.kill()
    await told.after_restarts(1)
    assert child.pid != before
    assert child.port == 7
    assert told.reports[0].startswith("one died: killed by SIGKILL; starting it again in 0.1 s")
    assert told.reports[1] == "one is back on port 7"
    keeping.cancel()


async def test_a_program_that_dies_again_and_again_is_given_up(
    supervisor: Supervisor, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisors, "FIRST_BACKOFF", 0.001)
    await supervisor.start(program("one", "print('port', 7); import sys; sys.exit('out of luck')"))
    with pytest.raises(ProgramFailed, match=r"one died 6 times in a row, now: exit code 1\n    out of luck"):
        await supervisor.keep(told.restarted)
    waits = [report.partition("again in ")[2].partition(" s")[0] for report in told.reports if "died" in report]
    assert len(waits) == supervisors.MOST_QUICK_DEATHS


HELD = """
import subprocess, sys
held = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
print("held by", held.pid, file=sys.stderr, flush=True)
"""


@pytest.fixture
def holders(told: Told) -> Iterator[list[int]]:
    """The processes that hold the pipes of programs which run HELD."""
    pids: list[int] = []
    yield pids
    pids += [int(line.split()[-1]) for _, line in told.lines if line.startswith("held by")]
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


async def test_a_dead_programs_pipes_hold_up_no_restart(supervisor: Supervisor, told: Told, holders: list[int]) -> None:
    child = await supervisor.start(program("one", HELD + SERVING))
    keeping = asyncio.ensure_future(supervisor.keep(told.restarted))
    child.kill()
    async with asyncio.timeout(30):
        await told.after_restarts(1)
    keeping.cancel()


async def test_a_dead_programs_pipes_hold_up_no_end(supervisor: Supervisor, told: Told, holders: list[int]) -> None:
    last = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('gone', flush=True)))\n"
    await supervisor.start(program("one", HELD + last + SERVING))
    async with asyncio.timeout(30):
        await supervisor.end()
    assert told.lines[-1] == ("one", "gone")


async def test_a_program_that_never_starts_is_told_though_its_pipes_are_held(
    supervisor: Supervisor, holders: list[int]
) -> None:
    with pytest.raises(ProgramFailed, match="exit code 3"):
        async with asyncio.timeout(30):
            await supervisor.start(program("one", f"{HELD}sys.exit(3)"))


async def test_a_program_that_was_stopped_is_told_to_end(supervisor: Supervisor) -> None:
    heeding = "import signal; signal.signal(signal.SIGTERM, signal.SIG_DFL); "  # else as where the tests run
    child = await supervisor.start(program("one", heeding + SERVING))
    os.kill(child.pid, signal.SIGSTOP)
    async with asyncio.timeout(30):
        await supervisor.end()


async def test_programs_end_in_order(supervisor: Supervisor, told: Told) -> None:
    saying = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('gone', flush=True)));"
    for name in ("inner", "edge"):
        await supervisor.start(program(name, saying + SERVING))
    await supervisor.end("edge")
    assert told.lines == [("edge", "gone"), ("inner", "gone")]


async def test_a_line_too_long_to_be_read_is_skipped(supervisor: Supervisor, told: Told) -> None:
    code = "print('x' * 3_000_000, flush=True); print('after', flush=True); "
    child = await supervisor.start(program("one", code + SERVING))
    assert child.port == 7
    assert ("one", "after") in told.lines


async def test_a_program_is_read_on_when_nobody_reads_the_log_any_more() -> None:
    def broken(name: str, line: str) -> None:
        raise BrokenPipeError

    lines = "for _ in range(20_000): print('a line', file=sys.{}, flush=True)\n"
    code = f"import sys\n{lines.format('stderr')}{lines.format('stdout')}{SERVING}"
    supervisor = Supervisor(print, broken)
    try:
        child = await asyncio.wait_for(supervisor.start(program("one", code)), 30)
        assert child.port == 7
    finally:
        supervisor.kill()
        await supervisor.end()


def test_a_tied_process_ends_when_its_starter_lets_go() -> None:
    command = [sys.executable, "-m", "deadlinemesh.local.tied", "http.server", "--bind", "127.0.0.1", "0"]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout
    assert process.stdin
    assert b"Serving HTTP" in process.stdout.readline()
    assert process.poll() is None
    process.stdin.close()
    assert process.wait(60) == ORPHANED
    process.stdout.close()
