"""Plain functions run in processes that are used again by their own tenant, and that always end."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import logging
import os
import signal
import socket
import statistics
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from deadlinemesh.admission import Wait, WaitEnd
from deadlinemesh.deadline import SYSTEM_CLOCK, DeadlineContext, Orphan, Scope, Scopes
from deadlinemesh.errors import Cause, ClientCancelled, DeadlineSpent, Stopped
from deadlinemesh.policy.model import Policy
from deadlinemesh.telemetry import CountingSink, Telemetry
from deadlinemesh.tool_runner.registry import Registry
from deadlinemesh.tool_runner.service import ToolService
from deadlinemesh.tool_runner.workers.keeper import _launched
from deadlinemesh.tool_runner.workers.keeper_main import READY, REPORT
from deadlinemesh.tool_runner.workers.marks import new_mark
from deadlinemesh.vocabulary import Phase, ToolEvent, ToolFinished, ToolProgress, ToolResult, ToolStarted, ToolStatus

pytestmark = pytest.mark.processes

_PATH = os.pathsep.join(sys.path)


class Call:
    """A call that is on its way."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.events: list[ToolEvent] = []
        self.told = asyncio.Event()
        """Set when the tool has told its progress."""
        self.task: asyncio.Task[None]

    @property
    def pids(self) -> list[int]:
        """The processes that a tool which stays has told of."""
        told = next(event for event in self.events if isinstance(event, ToolProgress))
        return [int(pid) for pid in told.message.split()]

    @property
    def outcome(self) -> ToolResult:
        """What came of it, when it is over."""
        finished = self.events[-1]
        assert isinstance(finished, ToolFinished)
        return finished.result

    async def stopped(self, cause: Cause) -> Stopped:
        """Stop it, and return the error that it ended with."""
        self.scope.stop(cause)
        with pytest.raises(Stopped) as stopped:
            await self.task
        return stopped.value


class Runner:
    """A tool-runner with the tools of `tests.support.blocking_tools` for three tenants."""

    def __init__(self, **tools: Any) -> None:
        self.sink = CountingSink()
        self.orphans: list[Orphan] = []
        self._scopes = Scopes("tool-runner", self.orphans.append)
        registry = Registry.from_policy(_policy(**tools), telemetry=Telemetry([self.sink]))
        self.service = ToolService(registry, 1_000_000)
        self.rests: list[asyncio.Task[None]] = []
        """What has yet to end of policies that were in force before."""

    def begin(
        self, name: str, tenant: str = "acme", seconds: float = 60.0, /, reads: bool = True, **arguments: Any
    ) -> Call:
        """Begin a call. One that does not read stops at the first progress."""
        now = SYSTEM_CLOCK.monotonic()
        call = Call(self._scopes.open(DeadlineContext(tenant, now + seconds, "free", "0" * 32, "run-1", now)))

        async def run() -> None:
            async with aclosing(self.service.call(name, json.dumps(arguments), "call-1")) as events:
                async for event in events:
                    call.events.append(event)
                    if isinstance(event, ToolProgress):
                        call.told.set()
                        while not reads:
                            await asyncio.Event().wait()

        call.task = asyncio.create_task(call.scope.run(run()))
        return call

    async def call(self, name: str, tenant: str = "acme", seconds: float = 60.0, /, **arguments: Any) -> ToolResult:
        """Make a call; its outcome."""
        call = self.begin(name, tenant, seconds, **arguments)
        await call.task
        return call.outcome

    async def pid(self, tenant: str = "acme") -> int:
        """Make a call; the process that it ran in."""
        return int(json.loads((await self.call("whoami", tenant)).content)["pid"])

    def use(self, **tools: Any) -> None:
        """Go over to another policy."""
        registry = Registry.from_policy(_policy(**tools), self.service.registry)
        self.rests.append(asyncio.create_task(self.service.replace(registry, 1_000_000).end()))

    @property
    def waits(self) -> list[WaitEnd]:
        """What came of the waits for a worker."""
        return [event.end for event in self.sink.events if isinstance(event, Wait)]


@asynccontextmanager
async def running(**tools: Any) -> AsyncIterator[Runner]:
    runner = Runner(**tools)
    yield runner
    await asyncio.gather(*runner.rests)
    await runner.service.aclose()


@pytest.fixture
async def runner() -> AsyncIterator[Runner]:
    async with running() as one:
        yield one


def _policy(**tools: Any) -> Policy:
    return Policy.model_validate(
        {
            "tiers": {"free": {"run_budget": 60, "iterations": 2}},
            "tenants": {
                name: {"tier": "free", "api_keys": [f"sha256:{number:064x}"]}
                for number, name in enumerate(("acme", "bolt", "cora"))
            },
            "models": {"scripted": {"provider": "scripted"}},
            "tools": {"modules": ["tests.support.blocking_tools"], **tools},
        }
    )


def alive(pid: int) -> bool:
    """Whether a process is there at all, be it a zombie."""
    return Path(f"/proc/{pid}").exists()


def children(of: int | None = None) -> set[int]:
    """The children of this process, or of another, zombies included."""
    own = of or os.getpid()
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rpartition(") ")[2].split()[1]) == own:
                found.add(int(path.parent.name))
        except OSError:
            continue
    return found


async def ended(pid: int) -> None:
    """Return when a process, that is alive as this is begun, has ended."""
    loop, has_ended = asyncio.get_running_loop(), asyncio.Event()
    process = os.pidfd_open(pid)
    try:
        loop.add_reader(process, has_ended.set)
        await has_ended.wait()
    finally:
        loop.remove_reader(process)
        os.close(process)


@contextmanager
def undying(pid: int) -> Iterator[None]:
    """Have a process, once killed, be there until the block is left, as one is that hangs in a system call.

    It is traced, and what is traced can be waited for by its parent only when its tracer has done so.
    """
    seize, any_child = 0x4206, 0x40000000  # PTRACE_SEIZE and __WALL
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    if ptrace(seize, pid, None, None):
        reason = f"no process may be traced here: {os.strerror(ctypes.get_errno())}"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        while os.WIFSTOPPED(os.waitpid(pid, any_child)[1]):
            pass


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> Sockets:
    """The sockets to a keeper and its processes. What else the tests before this one have left open comes and goes."""
    return Sockets(monkeypatch)


class Sockets:
    """All that are made in pairs from now on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._made: list[socket.socket] = []
        make = socket.socketpair

        def note() -> tuple[socket.socket, socket.socket]:
            pair = make()
            self._made += pair
            return pair

        monkeypatch.setattr(socket, "socketpair", note)

    @property
    def open(self) -> set[int]:
        """Those that are not closed, by their places in the order of their making."""
        return {place for place, one in enumerate(self._made) if one.fileno() != -1}


# --- a call ---


async def test_a_plain_function_sees_its_call_and_nothing_of_the_mesh(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DMESH_MESH_TOKEN", "secret")
    call = runner.begin("look", day="2026-11-24")
    await call.task
    seen = json.loads(call.outcome.content)
    assert (seen["tenant"], seen["run"], seen["tier"], seen["day"]) == ("acme", "run-1", "free", "Tuesday")
    # To the last digit, although no process was there yet when the call was sent to it.
    context = call.scope.context
    assert (seen["deadline_at"], seen["started_at"]) == (context.absolute_deadline, context.started_at)
    assert seen["main_thread"]
    assert seen["modules"] == []
    assert seen["mesh_variables"] == []


async def test_progress_arrives_in_order_and_what_a_tool_prints_disturbs_nothing(runner: Runner) -> None:
    call = runner.begin("count")
    await call.task
    started, half, whole, finished = call.events
    assert isinstance(started, ToolStarted)
    assert (half, whole) == (ToolProgress(0.5, "half"), ToolProgress(1.0, ""))
    assert isinstance(finished, ToolFinished)
    assert finished.result == ToolResult(ToolStatus.OK, "[1,2]")
    assert finished.spend is not None
    assert set(finished.spend.phases) == {Phase.TOOL_QUEUE, Phase.TOOL_CALL}


async def test_arguments_that_only_the_types_know_to_be_wrong_are_a_result_and_nothing_is_started(
    runner: Runner,
) -> None:
    call = runner.begin("pick", number=3)
    await call.task
    (finished,) = call.events
    assert isinstance(finished, ToolFinished)
    assert finished.result.status is ToolStatus.INVALID_ARGUMENTS
    assert "- number: Value error, 3 is not even" in finished.result.content


@pytest.mark.parametrize(
    ("how", "told", "transient", "retry_after"),
    [
        ("told", "busy", True, 2.0),
        ("reset", "ConnectionResetError: gone", True, None),
        ("exit", "it tried to exit the process", False, None),
        ("raise", "KeyError: 'secret_line_of_code'", False, None),
        ("speechless", "Speechless: its text cannot be told: RuntimeError", False, None),
        ("in its own way", "no city Atlantis", False, None),
    ],
)
async def test_a_failure_is_a_result_and_the_process_goes_on(
    runner: Runner, how: str, told: str, transient: bool, retry_after: float | None
) -> None:
    before = await runner.pid()
    expected = ToolResult(ToolStatus.FAILED, f"fail failed: {told}", transient, retry_after)
    assert await runner.call("fail", how=how) == expected
    assert await runner.pid() == before


async def test_a_traceback_is_logged_here_and_not_told(runner: Runner, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "deadlinemesh.tool_runner"):
        await runner.call("fail", how="raise")
    (record,) = caplog.records
    assert "tests.support.blocking_tools:fail) failed: tenant acme, run run-1" in record.getMessage()
    assert 'raise KeyError("secret_line_of_code")' in record.getMessage()


async def test_a_failure_is_told_however_long_its_traceback_is(
    runner: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    before = await runner.pid()
    found = await runner.call("fail", how="at length")
    assert found.content.startswith("fail failed: RuntimeError: 😀😀")
    assert "😀😀" in caplog.text
    assert await runner.pid() == before


async def test_an_answer_that_no_message_could_carry_is_cut_in_the_worker(runner: Runner) -> None:
    found = await runner.call("say", size=3_000_000)
    assert len(found.content.encode()) <= 1_000_000
    assert found.content.endswith("é\n[cut: the result is longer than 999488 bytes]")


async def test_half_a_character_in_an_answer_costs_no_more_than_itself(runner: Runner) -> None:
    assert await runner.call("halve") == ToolResult(ToolStatus.OK, '{"a?":["b?"]}')


async def test_an_awaitable_is_no_answer(runner: Runner) -> None:
    assert "declare the tool itself with `async def`" in (await runner.call("misnamed")).content


# --- whose process it is ---


async def test_a_process_is_used_again_by_its_tenant_and_never_by_another(runner: Runner) -> None:
    acme, bolt = await runner.pid("acme"), await runner.pid("bolt")
    assert acme != bolt
    assert [await runner.pid("acme"), await runner.pid("bolt")] == [acme, bolt]


async def test_the_process_that_was_idle_longest_makes_room_for_another_tenant() -> None:
    async with running(workers=2) as runner:
        acme, bolt = await runner.pid("acme"), await runner.pid("bolt")
        cora = await runner.pid("cora")
        assert await runner.pid("bolt") == bolt
        assert await runner.pid("cora") == cora
        assert await runner.pid("acme") != acme
        assert not alive(acme)


async def test_a_process_is_replaced_after_its_calls() -> None:
    async with running(calls_per_worker=2) as runner:
        first, again, other = [await runner.pid() for _ in range(3)]
        assert first == again != other
        assert not alive(first)


async def test_a_process_that_holds_too_much_memory_is_replaced() -> None:
    async with running(worker_memory_bytes=150 << 20) as runner:
        first = await runner.pid()
        await runner.call("grow", mebibytes=10)
        assert await runner.pid() == first
        await runner.call("grow", mebibytes=200)
        assert await runner.pid() != first
        assert not alive(first)


async def test_more_calls_than_processes_wait_and_their_wait_is_queue_time() -> None:
    async with running(workers=1) as runner:
        holding = runner.begin("stay", how="sleep")
        await holding.told.wait()
        waiting = runner.begin("whoami")
        await holding.stopped(Cause.CLIENT_CANCELLED)
        await waiting.task
        finished = waiting.events[-1]
        assert isinstance(finished, ToolFinished)
        assert finished.spend is not None
        assert finished.spend.phases[Phase.TOOL_QUEUE] > finished.spend.phases[Phase.TOOL_CALL] > 0
        assert runner.waits == [WaitEnd.GRANTED, WaitEnd.GRANTED]


# --- when the policy changes ---


async def test_a_change_of_policy_gives_nobody_a_second_set_of_processes() -> None:
    async with running(workers=1) as runner:
        holding = runner.begin("stay", how="sleep")
        await holding.told.wait()
        runner.use(workers=1)
        with pytest.raises(DeadlineSpent):
            await runner.call("whoami", "bolt", 0.05)
        assert runner.waits == [WaitEnd.GRANTED, WaitEnd.LEFT]
        waiting = runner.begin("whoami", "bolt")
        runner.use(workers=2)
        await waiting.task
        await holding.stopped(Cause.CLIENT_CANCELLED)


async def test_a_process_outlives_a_change_of_policy_and_is_used_again(runner: Runner) -> None:
    before = await runner.pid()
    runner.use()
    assert await runner.pid() == before


async def test_processes_that_are_too_many_under_another_policy_end_as_soon_as_they_are_idle() -> None:
    async with running(workers=3) as runner:
        idle, calls, servers = await runner.pid("cora"), {}, {}
        for tenant in ("acme", "bolt"):
            servers[tenant] = socket.create_server(("127.0.0.1", 0))
            calls[tenant] = runner.begin("wait_for", tenant, port=servers[tenant].getsockname()[1])
            await calls[tenant].told.wait()
        ending = asyncio.create_task(ended(idle))
        await asyncio.sleep(0)  # until it is watched
        runner.use(workers=1)
        await ending
        left = []
        for tenant, call in calls.items():
            with servers[tenant] as server, server.accept()[0] as connection:
                connection.sendall(b"go on")
            await call.task
            assert call.outcome.content == "go on"
            left.append(alive(*call.pids))
        assert left == [False, True]


# --- how it ends ---


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        *((how, Cause.DEADLINE_SPENT) for how in ("spin", "sigterm", "swallow", "fork", "setsid", "daemon", "shell")),
        ("sleep", Cause.CLIENT_CANCELLED),
        ("sleep", Cause.DRAINING),
    ],
)
async def test_whatever_a_tool_does_it_has_ended_with_all_that_it_started_when_its_call_has(
    runner: Runner, how: str, cause: Cause
) -> None:
    call = runner.begin("stay", how=how)
    await call.told.wait()
    assert all(alive(pid) for pid in call.pids)
    assert (await call.stopped(cause)).cause is cause
    assert not any(alive(pid) for pid in call.pids)
    assert runner.orphans == []
    assert (await runner.call("count")).content == "[1,2]"


async def test_a_tool_is_gone_within_50_ms_of_its_deadline(runner: Runner) -> None:
    await runner.call("count")  # starting the first process may take longer than the calls here have
    late = []
    for _ in range(5):
        call = runner.begin("stay", "acme", 1.0, how="spin")
        await call.told.wait()
        with pytest.raises(DeadlineSpent):
            await call.task
        late.append(SYSTEM_CLOCK.monotonic() - call.scope.context.absolute_deadline)
        assert not any(alive(pid) for pid in call.pids)
    assert statistics.median(late) < 0.05


@pytest.mark.parametrize("what", ["thread", "process"])
async def test_what_a_call_leaves_running_ends_with_it_and_is_reported(
    runner: Runner, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "deadlinemesh.tool_runner"):
        found = await runner.call("leave", how=what)
    assert found.status is ToolStatus.OK
    assert not any(alive(pid) for pid in json.loads(found.content)["pids"])
    (record,) = caplog.records
    expected = {"thread": "left the thread left-over running", "process": "left a process running"}[what]
    assert expected in record.getMessage()
    assert "tenant acme, run run-1" in record.getMessage()


async def test_a_tool_that_talks_to_a_reader_who_does_not_read_ends_as_well(runner: Runner) -> None:
    call = runner.begin("chatter", reads=False)
    await call.told.wait()
    await call.stopped(Cause.DEADLINE_SPENT)
    assert not any(alive(pid) for pid in call.pids)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("exit", "crash failed: its process exited with status 3 before it had answered"),
        ("segfault", "crash failed: its process was killed by SIGSEGV before it had answered"),
        ("kill", "crash failed: its process was killed by SIGKILL before it had answered"),
        ("closed", "crash failed: its process was killed by SIGKILL before it had answered"),
        ("noise", "crash failed: what its process sent was no answer; does it write to what it did not open?"),
    ],
)
async def test_a_crash_is_a_failed_result_that_names_it_and_the_next_call_works(
    runner: Runner, how: str, told: str
) -> None:
    before = await runner.pid()
    assert await runner.call("crash", how=how) == ToolResult(ToolStatus.FAILED, told)
    assert not alive(before)
    assert (await runner.call("count")).content == "[1,2]"


async def test_an_idle_process_that_dies_is_forgotten(runner: Runner) -> None:
    before = await runner.pid()
    ending = asyncio.create_task(ended(before))
    await asyncio.sleep(0)
    os.kill(before, signal.SIGKILL)
    await ending
    await runner.pid("bolt")  # the keeper reaps before it starts another
    assert await runner.pid() != before


@pytest.fixture
def _uncollected() -> Iterator[None]:
    """No collection of cycles: among what thousands of tests have left it may take longer than an orphan has."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_uncollected")
async def test_fifty_cancels_at_once_leave_no_process_and_no_file_behind(sockets: Sockets) -> None:
    loops_own = sockets.open
    async with running(workers=50) as runner:
        await runner.call("count")
        (control, _), before = sorted(sockets.open - loops_own), children()
        calls = [runner.begin("stay", tenant, how="setsid") for tenant in ("acme", "bolt") for _ in range(25)]
        for call in calls:
            await call.told.wait()
        for call in calls:
            call.scope.stop(Cause.CLIENT_CANCELLED)
        for call in calls:
            with pytest.raises(ClientCancelled):
                await call.task
        assert runner.orphans == []
        assert not any(alive(pid) for call in calls for pid in call.pids)
        assert sockets.open - loops_own == {control}  # not that to the process that was idle before
        assert children() == before


async def test_closing_ends_every_process_and_closes_every_file(sockets: Sockets) -> None:
    loops_own, before = sockets.open, children()
    async with running() as runner:
        pids = [await runner.pid("acme"), await runner.pid("bolt")]
        (keeper,) = children() - before
    assert not any(alive(pid) for pid in [keeper, *pids])
    assert children() == before
    assert sockets.open == loops_own


async def test_nothing_outlives_a_keeper_that_is_killed_and_the_next_call_has_another() -> None:
    before = children()
    async with running() as runner:
        call = runner.begin("stay", how="setsid")
        await call.told.wait()
        (keeper,) = children() - before
        async with asyncio.TaskGroup() as ends:
            for pid in call.pids:
                ends.create_task(ended(pid))
            await asyncio.sleep(0)  # until each is watched
            os.kill(keeper, signal.SIGKILL)
        await call.task
        finished = call.events[-1]
        assert isinstance(finished, ToolFinished)
        assert finished.result.content == "stay failed: its process was lost before it had answered"
        assert (await runner.call("count")).content == "[1,2]"
        assert keeper not in children()


async def test_a_keeper_says_that_it_is_ready_before_all_else() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        process = _launched(theirs, new_mark())
    ours.setblocking(False)
    try:
        said = await asyncio.get_running_loop().sock_recv(ours, REPORT.size)
        assert REPORT.unpack(said) == (READY, 0, 0)
    finally:
        ours.close()
        process.wait()


async def test_a_keeper_that_a_tool_has_stopped_holds_up_no_kill_and_the_next_call_has_another() -> None:
    before = children()
    async with running() as runner:
        call = runner.begin("stay", how="setsid")
        await call.told.wait()
        (keeper,) = children() - before
        os.kill(keeper, signal.SIGSTOP)
        async with asyncio.TaskGroup() as ends:
            for pid in call.pids:
                ends.create_task(ended(pid))
            await asyncio.sleep(0)  # until each is watched
            await call.stopped(Cause.CLIENT_CANCELLED)
        assert keeper not in children()
        assert (await runner.call("count")).content == "[1,2]"


async def test_a_process_that_does_not_die_costs_no_other_tenant_its_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A second, which is beyond the time that its keeper has to answer.
    monkeypatch.setattr("deadlinemesh.tool_runner.workers.worker.CANCELS_BEFORE_GIVING_UP", 20)
    before = children()
    async with running() as runner:
        bolt, tasks = await runner.pid("bolt"), asyncio.all_tasks()
        (keeper,) = children() - before
        call = runner.begin("stay", "acme", how="sleep")
        await call.told.wait()
        (pid,) = call.pids
        with undying(pid):
            await call.stopped(Cause.DEADLINE_SPENT)
            await asyncio.wait(asyncio.all_tasks() - tasks)  # until nobody waits for it any longer
            assert alive(pid)
            assert await runner.pid("bolt") == bolt
            assert (await runner.call("count", "acme")).content == "[1,2]"
            assert keeper in children()
        await runner.pid("bolt")
        assert keeper in children()


async def test_the_end_of_a_call_does_not_wait_for_what_another_has_left() -> None:
    before = children()
    async with running() as runner:
        acme, bolt = runner.begin("stay", "acme", how="setsid"), runner.begin("stay", "bolt", how="setsid")
        await acme.told.wait()
        await bolt.told.wait()
        (keeper,) = children() - before
        _, left = acme.pids
        with undying(left):
            killed = asyncio.create_task(ended(left))
            await asyncio.sleep(0)  # until it is watched
            acme.scope.stop(Cause.CLIENT_CANCELLED)
            await killed  # so its worker's death is known, and its own is not
            await bolt.stopped(Cause.CLIENT_CANCELLED)
            assert not any(alive(pid) for pid in bolt.pids)
            assert alive(left)
            assert keeper in children()
            assert {orphan.context.tenant_id for orphan in runner.orphans} <= {"acme"}
        with pytest.raises(ClientCancelled):
            await acme.task


async def test_what_may_have_been_left_by_either_of_two_holds_up_both_but_not_for_ever() -> None:
    before = children()
    async with running() as runner:
        calls = [runner.begin("stay", tenant, how="setsid") for tenant in ("acme", "bolt")]
        for call in calls:
            await call.told.wait()
        (keeper,) = children() - before
        workers, (left, _) = zip(*(call.pids for call in calls), strict=True)
        with undying(left):
            async with asyncio.TaskGroup() as ends:
                for pid in workers:
                    ends.create_task(ended(pid))
                await asyncio.sleep(0)  # until each is watched
                os.kill(keeper, signal.SIGSTOP)  # so that it learns of both deaths at once
                for pid in workers:
                    os.kill(pid, signal.SIGKILL)
            os.kill(keeper, signal.SIGCONT)
            for call in calls:
                await call.task
                finished = call.events[-1]
                assert isinstance(finished, ToolFinished)
                assert "its process was killed by SIGKILL" in finished.result.content
            assert alive(left)
            assert keeper in children()
        assert (await runner.call("count")).content == "[1,2]"
        assert keeper in children()


async def test_a_keeper_that_stands_still_is_no_reason_not_to_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deadlinemesh.tool_runner.workers.keeper.CLOSES_WITHIN", 0.1)
    before = children()
    async with running() as runner:
        worker = asyncio.ensure_future(ended(await runner.pid()))
        await asyncio.sleep(0)  # until it is watched
        (keeper,) = children() - before
        os.kill(keeper, signal.SIGSTOP)
    await worker
    async with asyncio.timeout(10):
        while children() != before:  # noqa: ASYNC110  # they are waited for in a thread
            await asyncio.sleep(0.01)


_TOOL_RUNNER = """
import asyncio
from tests.processes.test_tool_workers import running

async def main():
    async with running() as runner:
        call = runner.begin("stay", how="setsid")
        await call.told.wait()
        print(*call.pids, flush=True)
        await call.task

asyncio.run(main())
"""


@pytest.mark.parametrize("keeper", ["at work", "stopped"])
async def test_nothing_outlives_a_tool_runner_that_is_killed(keeper: str) -> None:
    tool_runner = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _TOOL_RUNNER), stdout=asyncio.subprocess.PIPE, env=os.environ | {"PYTHONPATH": _PATH}
    )
    assert tool_runner.stdout is not None
    pids = [int(pid) for pid in (await tool_runner.stdout.readline()).split()]
    pids += children(tool_runner.pid)
    assert all(alive(pid) for pid in pids)
    if keeper == "stopped":
        os.kill(pids[-1], signal.SIGSTOP)
    async with asyncio.TaskGroup() as ends:
        for pid in pids:
            ends.create_task(ended(pid))
        await asyncio.sleep(0)  # until each is watched
        tool_runner.kill()
    await tool_runner.wait()
