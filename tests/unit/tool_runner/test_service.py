from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from tests.support.blocking_tools import NoSuchCity, Speechless

from deadlinemesh.deadline import SYSTEM_CLOCK, Clock, DeadlineContext, Scopes, VirtualClock, current
from deadlinemesh.errors import Cause, ClientCancelled, DeadlineSpent, NotFound, Shed, UpstreamFailed
from deadlinemesh.tool_runner import Progress, ToolError, tool
from deadlinemesh.tool_runner.arguments import ArgumentsReader
from deadlinemesh.tool_runner.kinds.python import PythonTool
from deadlinemesh.tool_runner.registry import Registry
from deadlinemesh.tool_runner.service import LONG_ARGUMENTS, UNREAD_PROGRESS, ToolService
from deadlinemesh.tool_runner.tool import definition_of
from deadlinemesh.vocabulary import (
    LONGEST_ARGUMENTS,
    Phase,
    ToolEvent,
    ToolFinished,
    ToolProgress,
    ToolResult,
    ToolStarted,
    ToolStatus,
)


def service(*functions: Callable[..., Any], message_bytes: int = 1_000_000, clock: Clock = SYSTEM_CLOCK) -> ToolService:
    tools = {}
    for function in functions:
        definition = definition_of(function)
        assert definition is not None
        tools[definition.spec.name] = PythonTool(definition)
    return ToolService(Registry(tools, {"acme": ()}), message_bytes, clock)


def context(seconds: float = 30.0, clock: Clock = SYSTEM_CLOCK) -> DeadlineContext:
    now = clock.monotonic()
    return DeadlineContext("acme", now + seconds, "free", "0" * 32, "run-1", now, clock)


async def scoped(work: Coroutine[Any, Any, Any], seconds: float = 30.0) -> Any:
    return await Scopes("tool-runner").open(context(seconds)).run(work)


async def events(of: ToolService, name: str, arguments: str = "") -> list[ToolEvent]:
    async def collect() -> list[ToolEvent]:
        async with aclosing(of.call(name, arguments, "call-1")) as stream:
            return [event async for event in stream]

    collected: list[ToolEvent] = await scoped(collect())
    return collected


async def outcome(of: ToolService, name: str, arguments: str = "") -> ToolResult:
    last = (await events(of, name, arguments))[-1]
    assert isinstance(last, ToolFinished)
    return last.result


@tool
async def greet(name: str, day: date | None = None) -> str:
    """Greet."""
    return f"hello {name}" if day is None else f"hello {name} on {day:%A}"


async def test_a_call_tells_that_it_started_how_far_it_is_and_what_came_of_it() -> None:
    @tool
    async def count(progress: Progress) -> list[int]:
        """Count."""
        await progress(0.5, "half")
        await progress(7.0, "too far")
        await progress(float("nan"))
        return [1, 2]

    started, *progress, finished = await events(service(count), "count")
    assert isinstance(started, ToolStarted)
    assert progress == [ToolProgress(0.5, "half"), ToolProgress(1.0, "too far"), ToolProgress(0.0, "")]
    assert isinstance(finished, ToolFinished)
    assert finished.result == ToolResult(ToolStatus.OK, "[1,2]")


async def test_progress_beyond_its_bounds_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deadlinemesh.tool_runner.service.MOST_PROGRESS_EVENTS", 5)
    monkeypatch.setattr("deadlinemesh.tool_runner.service.MOST_PROGRESS_BYTES", 30)

    @tool
    async def count(length: int, progress: Progress) -> str:
        """Count."""
        for _ in range(20):
            await progress(0.5, "é" * length)
        return "counted"

    for length, told in ((0, 5), (5, 3)):
        _, *progress, finished = await events(service(count), "count", json.dumps({"length": length}))
        assert len(progress) == told
        assert isinstance(finished, ToolFinished)
        assert finished.result.content == "counted"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Client error '404 Not Found' for url 'http://crm.internal:8080/customers/7?key=x'"),
        ConnectionError("Connect call failed ('10.0.0.5', 8080)"),
        OSError("Cannot connect to host crm:8080 ssl:default"),
        LookupError("crm.default.svc.cluster.local: name not known"),
        UpstreamFailed("http://[fd00::5]:80/ is away"),
    ],
)
async def test_an_error_tells_no_address(error: Exception) -> None:
    @tool
    async def work() -> None:
        """Work."""
        raise error

    content = (await outcome(service(work), "work")).content
    assert "…" in content
    assert not any(part in content for part in ("crm", "10.0.0", "8080/", "fd00", "key=x"))


async def test_the_time_is_told_by_phase_and_adds_up() -> None:
    clock = VirtualClock(asyncio.get_running_loop().time())

    @tool
    async def work() -> str:
        """Work."""
        clock.advance(2.5)
        return ""

    async def collect() -> list[ToolEvent]:
        async with aclosing(service(work, clock=clock).call("work", "")) as stream:
            clock.advance(0.25)  # from the call's arrival to the handler
            return [event async for event in stream]

    started, finished = await Scopes("tool-runner").open(context(30, clock)).run(collect())
    assert isinstance(started, ToolStarted)
    assert started.queued == pytest.approx(0.0)
    assert isinstance(finished, ToolFinished)
    assert finished.spend is not None
    assert finished.spend.phases == {Phase.TOOL_CALL: pytest.approx(2.5)}
    assert finished.spend.elapsed == pytest.approx(2.75)


async def test_a_tool_sees_the_callers_deadline_and_tenant() -> None:
    @tool
    async def look() -> str:
        """Look."""
        return f"{current().tenant_id} {29 < current().remaining <= 30}"

    assert (await outcome(service(look), "look")).content == "acme True"


async def test_a_string_is_read_as_it_is_and_everything_else_as_json() -> None:
    @tool
    async def plain() -> str:
        """Say."""
        return 'say "hi"'

    @tool
    async def rich() -> Any:
        """Tell."""
        return {"day": date(2026, 11, 24), "raw": b"\xff", "odd": {1}, "none": None}

    both = service(plain, rich)
    assert (await outcome(both, "plain")).content == 'say "hi"'
    assert (await outcome(both, "rich")).content == '{"day":"2026-11-24","raw":"_w==","odd":[1],"none":null}'


@dataclass
class Folder:
    name: str
    path: Path


HALF = "a\ud83d"


@pytest.mark.parametrize(
    ("answer", "content"),
    [
        ({"text": HALF, "list": [(HALF,)]}, '{"text":"a?","list":[["a?"]]}'),
        ([{HALF: {HALF: date(2026, 11, 24)}}], '[{"a?":{"a?":"2026-11-24"}}]'),
        (Folder(HALF, Path(HALF)), '{"name":"a?","path":"a?"}'),
        ({1: b"\xff", (1, 2): {HALF}, "é": None}, '{"1":"_w==","1,2":["a?"],"é":null}'),
    ],
)
async def test_half_a_character_anywhere_in_a_result_costs_no_more_than_itself(answer: Any, content: str) -> None:
    @tool
    async def find() -> Any:
        """Find."""
        return answer

    assert await outcome(service(find), "find") == ToolResult(ToolStatus.OK, content)


async def test_half_a_character_in_what_can_be_read_only_once_is_told() -> None:
    @tool
    async def find() -> Any:
        """Find."""
        return {"found": (text for text in ("a", HALF, "b"))}

    assert "an iterator, which can be read only once: return a list" in (await outcome(service(find), "find")).content


@pytest.mark.parametrize("arguments", ['{"name": 3}', "{", "[]", '{"nam": "x"}'])
async def test_wrong_arguments_are_a_result_that_explains_and_the_tool_does_not_start(arguments: str) -> None:
    (finished,) = await events(service(greet), "greet", arguments)
    assert isinstance(finished, ToolFinished)
    assert finished.result.status is ToolStatus.INVALID_ARGUMENTS
    assert finished.result.content.startswith("greet was not run, because its arguments are not right:\n- ")
    assert not finished.result.transient
    assert finished.spend is not None
    assert finished.spend.phases == {}


async def test_what_only_the_types_know_to_be_wrong_is_explained_as_well() -> None:
    found = await outcome(service(greet), "greet", '{"name": "Ada", "day": "2026-02-30"}')
    assert found.status is ToolStatus.INVALID_ARGUMENTS
    assert "- day" in found.content


@pytest.mark.parametrize(("length", "beside"), [(10, False), (LONG_ARGUMENTS, True)])
async def test_long_arguments_are_checked_beside_the_event_loop(
    length: int, beside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []

    def read(self: ArgumentsReader, text: str) -> Any:
        threads.append(threading.current_thread())
        return {"name": "Ada"}, []

    monkeypatch.setattr(ArgumentsReader, "read", read)
    assert (await outcome(service(greet), "greet", json.dumps({"name": "x" * length}))).content == "hello Ada"
    assert (threads != [threading.main_thread()]) is beside


async def test_arguments_beyond_any_size_are_not_even_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ArgumentsReader, "read", lambda *_: pytest.fail("they were parsed"))
    text = '{"a": [' + "[]," * LONGEST_ARGUMENTS + "[]]}"
    result = await outcome(service(greet), "greet", text)
    assert result.status is ToolStatus.INVALID_ARGUMENTS
    assert f"they have {len(text)} characters; give at most {LONGEST_ARGUMENTS}" in result.content


async def test_an_unknown_tool_is_an_error_of_the_call_that_names_the_known_ones() -> None:
    with pytest.raises(NotFound, match="one of greet"):
        await events(service(greet), "great")


async def test_an_exception_is_a_failed_result_and_its_traceback_is_logged_not_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @tool
    async def broken() -> None:
        """Break."""
        raise KeyError("secret_line_of_code")

    with caplog.at_level(logging.WARNING, "deadlinemesh.tool_runner"):
        found = await outcome(service(broken), "broken")
    assert found == ToolResult(ToolStatus.FAILED, "broken failed: KeyError: 'secret_line_of_code'")
    (record,) = caplog.records
    assert "call call-1, tenant acme, run run-1" in record.message
    assert record.exc_info is not None


async def test_a_refusal_by_admission_is_no_result_and_not_logged_as_a_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @tool
    async def full() -> None:
        """Refuse."""
        raise Shed("full")

    with pytest.raises(Shed, match="full"):
        await outcome(service(full), "full")
    assert caplog.records == []


class BackendDown(UpstreamFailed):
    def __init__(self) -> None:
        self.since = "noon"


@pytest.mark.parametrize(
    ("error", "told", "transient", "retry_after"),
    [
        (ToolError("no such city"), "no such city", False, None),
        (ToolError("busy", transient=True, retry_after=2.0), "busy", True, 2.0),
        (UpstreamFailed("down", retry_after=1.5), "UpstreamFailed: down", True, 1.5),
        (ConnectionResetError("gone"), "ConnectionResetError: gone", True, None),
        (TimeoutError(), "TimeoutError: ", True, None),
        (ValueError("odd"), "ValueError: odd", False, None),
        (Speechless(), "Speechless: its text cannot be told: RuntimeError", False, None),
        (NoSuchCity("Atlantis"), "no city Atlantis", False, None),
        (BackendDown(), "BackendDown: ", True, None),
    ],
)
async def test_a_failure_says_whether_trying_again_may_help(
    error: Exception, told: str, transient: bool, retry_after: float | None
) -> None:
    @tool
    async def fail() -> None:
        """Fail."""
        raise error

    expected = ToolResult(ToolStatus.FAILED, f"fail failed: {told}", transient, retry_after)
    assert await outcome(service(fail), "fail") == expected


async def test_a_tool_that_cancels_itself_or_exits_has_failed_and_nothing_else_ends() -> None:
    @tool
    async def cancel() -> None:
        """Cancel."""
        raise asyncio.CancelledError

    @tool
    async def leave() -> None:
        """Exit."""
        raise SystemExit(3)

    both = service(cancel, leave)
    assert (await outcome(both, "cancel")).content == "cancel failed: the tool cancelled itself"
    assert (await outcome(both, "leave")).content == "leave failed: leave tried to exit the process"


class Stubborn:
    """A tool that waits for ever, and facts about it."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.cancelled = asyncio.Event()

        @tool
        async def wait(progress: Progress) -> None:
            """Wait."""
            await progress(0.1)
            self.began.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise

        self.tool = wait


async def test_a_spent_deadline_is_no_result_and_stops_the_tool() -> None:
    stubborn = Stubborn()
    seen: list[ToolEvent] = []

    async def collect() -> None:
        async with aclosing(service(stubborn.tool).call("wait", "")) as stream:
            async for event in stream:
                seen.append(event)

    scope = Scopes("tool-runner").open(context())
    running = asyncio.create_task(scope.run(collect()))
    await stubborn.began.wait()
    scope.stop(Cause.DEADLINE_SPENT)
    with pytest.raises(DeadlineSpent):
        await running
    assert stubborn.cancelled.is_set()
    assert [type(event) for event in seen] == [ToolStarted, ToolProgress]


async def test_a_caller_that_leaves_stops_the_tool() -> None:
    stubborn = Stubborn()
    waiting = asyncio.create_task(events(service(stubborn.tool), "wait"))
    await stubborn.began.wait()
    waiting.cancel()
    with pytest.raises((ClientCancelled, asyncio.CancelledError)):
        await waiting
    assert stubborn.cancelled.is_set()


async def test_closing_the_events_stops_the_tool_before_it_returns() -> None:
    stubborn = Stubborn()

    async def look_and_leave() -> bool:
        async with aclosing(service(stubborn.tool).call("wait", "")) as stream:
            async for _ in stream:
                break
        return stubborn.cancelled.is_set() or not stubborn.began.is_set()

    assert await scoped(look_and_leave())


async def test_a_tool_waits_for_a_reader_that_does_not_read_and_nothing_is_lost() -> None:
    told = 0

    @tool
    async def chatter(progress: Progress) -> str:
        """Talk."""
        nonlocal told
        for number in range(100):
            await progress(number / 100, str(number))
            told = number + 1
        return "done"

    async def read_slowly() -> list[ToolEvent]:
        async with aclosing(service(chatter).call("chatter", "")) as stream:
            first = await anext(stream)
            for _ in range(200):
                await asyncio.sleep(0)
            assert told <= UNREAD_PROGRESS + 1
            return [first, *[event async for event in stream]]

    _, *progress, finished = await scoped(read_slowly())
    assert [event.message for event in progress] == [str(number) for number in range(100)]
    assert finished.result.content == "done"


async def test_a_result_that_no_message_could_carry_is_cut_with_a_mark() -> None:
    @tool
    async def shout() -> str:
        """Shout."""
        return "é" * 10_000

    found = await outcome(service(shout, message_bytes=1024), "shout")
    assert len(found.content.encode()) <= 512
    assert found.content.endswith("é\n[cut: the result is longer than 512 bytes]")


async def test_what_utf8_cannot_say_is_replaced() -> None:
    found = await outcome(service(greet), "greet", '{"name": "\\ud800"}')
    assert found.content == "hello ?"


async def test_calls_that_began_before_a_replacement_end_with_their_own_tools() -> None:
    go_on, began = asyncio.Event(), asyncio.Event()

    @tool
    async def old() -> str:
        """Wait."""
        began.set()
        await go_on.wait()
        return "old"

    served = service(old)
    call = asyncio.create_task(outcome(served, "old"))
    await began.wait()
    replacing = asyncio.create_task(served.replace(Registry({}, {"acme": ()}), 1_000_000).end())
    await asyncio.sleep(0)
    with pytest.raises(NotFound):
        await events(served, "old")
    assert not replacing.done()
    go_on.set()
    assert (await call).content == "old"
    await replacing
