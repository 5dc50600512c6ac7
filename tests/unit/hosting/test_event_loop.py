"""The event loop that a service runs on."""

from __future__ import annotations

import asyncio
import math
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar, copy_context
from functools import partial
from typing import Any

import pytest

from deadlinemesh.hosting import event_loop as module
from deadlinemesh.hosting.event_loop import _OnAsyncio, event_loop

Loop = Callable[[], asyncio.AbstractEventLoop]
both = pytest.mark.parametrize("loop", [event_loop, _OnAsyncio])


def run(loop: Loop, main: Coroutine[Any, Any, object]) -> object:
    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(main)


async def exits() -> None:
    await asyncio.sleep(0)
    sys.exit(3)


@both
def test_a_task_that_exits_ends_itself_and_nothing_else(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> str:
        over = asyncio.Event()
        bystander = asyncio.create_task(over.wait())
        with pytest.raises(SystemExit):
            await asyncio.gather(exits())
        asyncio.get_running_loop().call_soon(sys.exit)
        asyncio.get_running_loop().call_soon(over.set)
        await bystander
        return "still here"

    assert run(loop, main()) == "still here"
    assert caplog.text.count("a task tried to exit the process") == 2


@both
def test_what_the_main_task_exits_with_is_the_exit(loop: Loop) -> None:
    with pytest.raises(SystemExit, match="3"):
        run(loop, exits())


def at(seconds: float) -> Awaitable[float]:
    """When a timer fires that is set to `seconds` from now, less when it should."""
    loop = asyncio.get_running_loop()
    fired: asyncio.Future[float] = loop.create_future()
    due = time.monotonic() + seconds
    loop.call_at(due, lambda: fired.set_result(time.monotonic() - due))
    return fired


def after(seconds: float) -> Awaitable[float]:
    """As `at`, with a timer that is told the seconds."""
    loop = asyncio.get_running_loop()
    fired: asyncio.Future[float] = loop.create_future()
    due = loop.time() + seconds
    loop.call_later(seconds, lambda: fired.set_result(time.monotonic() - due))
    return fired


@both
@pytest.mark.parametrize("timer", [at, after])
def test_no_timer_comes_early(loop: Loop, timer: Callable[[float], Awaitable[float]]) -> None:
    async def main() -> list[float]:
        return [await timer(0.0001 * hundredths_of_ms) for hundredths_of_ms in range(40)]

    late: Any = run(loop, main())
    assert min(late) >= 0


@both
def test_a_timer_whose_time_is_over_fires_at_once(loop: Loop) -> None:
    async def main() -> None:
        assert await at(-5.0) >= 5.0

    run(loop, main())


@both
def test_a_timer_may_be_endless(loop: Loop) -> None:
    async def main() -> None:
        endless = asyncio.ensure_future(asyncio.sleep(math.inf))
        async with asyncio.timeout(math.inf):
            await asyncio.sleep(0)
        endless.cancel()
        await asyncio.wait({endless})
        assert endless.cancelled()

    run(loop, main())


@both
def test_timers_call_with_their_arguments_in_the_context_they_are_given(loop: Loop) -> None:
    variable: ContextVar[str] = ContextVar("variable", default="the running one")

    async def main() -> None:
        running = asyncio.get_running_loop()
        given = copy_context()
        given.run(variable.set, "the given one")
        for set_timer in (partial(running.call_later, 0.0), partial(running.call_at, running.time())):
            for context, expected in ((None, "the running one"), (given, "the given one")):
                seen: asyncio.Future[tuple[str, str]] = running.create_future()
                set_timer(
                    lambda argument, seen=seen: seen.set_result((argument, variable.get())), "argument", context=context
                )
                assert await seen == ("argument", expected)

    run(loop, main())


@both
def test_lookups_that_hang_hold_up_no_other(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = threading.Event()

    def look_up(host: str, port: int) -> list[object]:
        if host == "dead.example":
            dead.wait()
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("192.0.2.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)

    async def main() -> object:
        lookup = asyncio.get_running_loop().getaddrinfo
        hanging = [asyncio.ensure_future(lookup("dead.example", 443)) for _ in range(100)]
        found = await lookup("live.example", 443)
        for one in hanging:
            one.cancel()
        await asyncio.wait(hanging)
        return found

    assert run(loop, main()) == [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("192.0.2.1", 443))]
    dead.set()


@both
def test_a_name_is_found(loop: Loop) -> None:
    async def main() -> Any:
        return await asyncio.get_running_loop().getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)

    found: Any = run(loop, main())
    assert {address[0] for *_, address in found} & {"127.0.0.1", "::1"}


def test_services_run_on_uvloop_and_where_there_is_none_on_asyncios_own() -> None:
    assert event_loop is module._OnUvloop
    script = f"import sys; sys.modules['uvloop'] = None; import {module.__name__} as m; print(m.event_loop.__name__)"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "_OnAsyncio"
