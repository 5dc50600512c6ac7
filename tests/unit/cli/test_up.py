"""What ends `dmesh up`, without a mesh."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from deadlinemesh.cli import up as module
from deadlinemesh.hosting.settings import CommandSettings
from deadlinemesh.local.machine import UpOptions
from deadlinemesh.local.supervisor import ProgramFailed
from deadlinemesh.views.output import Exit


@pytest.mark.parametrize("ignored", [True, False])
async def test_a_terminal_that_closes_ends_it_unless_that_was_ignored_as_under_nohup(
    monkeypatch: pytest.MonkeyPatch, ignored: bool
) -> None:
    ignored_while_up: list[bool] = []

    @asynccontextmanager
    async def no_mesh(*_: Any) -> AsyncIterator[Any]:
        ignored_while_up.append(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN)
        raise ProgramFailed("enough")
        yield

    monkeypatch.setattr(module, "running_mesh", no_mesh)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        assert await module.up(None, UpOptions(), CommandSettings(), as_json=True) == Exit.FAILED
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert ignored_while_up == [ignored]
