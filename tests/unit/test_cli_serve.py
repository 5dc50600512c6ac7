"""The event loop that a service runs on."""

from __future__ import annotations

import asyncio
import sys

import pytest

from deadlinemesh.cli.serve import Undeterred


def run(main: object) -> object:
    with asyncio.Runner(loop_factory=Undeterred) as runner:
        return runner.run(main)  # type: ignore[arg-type]


async def exits() -> None:
    await asyncio.sleep(0)
    sys.exit(3)


def test_a_task_that_exits_ends_itself_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> str:
        bystander = asyncio.create_task(asyncio.sleep(0.01, "still here"))
        with pytest.raises(SystemExit):
            await asyncio.gather(exits())
        asyncio.get_running_loop().call_soon(sys.exit)
        return await bystander

    assert run(main()) == "still here"
    assert caplog.text.count("a task tried to exit the process") == 2


def test_what_the_main_task_exits_with_is_the_exit() -> None:
    with pytest.raises(SystemExit, match="3"):
        run(exits())
