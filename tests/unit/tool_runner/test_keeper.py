"""A keeper that answers is kept, however long a worker takes to die; one that does not is given up."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator

import pytest

from deadlinemesh.tool_runner.workers.keeper import Keeper
from deadlinemesh.tool_runner.workers.keeper_main import COMMAND, ENDED, KILL, OBEYED, READY, REPORT
from deadlinemesh.tool_runner.workers.worker import CANCELS_BEFORE_GIVING_UP


class FakeKeeper:
    """The other end of a keeper's socket. It obeys and tells when the test says so, and runs in no process. `boots` says that
    also that it is ready is the test's to say.
    """

    pid = 0

    def __init__(self, *, boots: bool = False) -> None:
        self.killed = False
        self._boots = boots
        self._kills: asyncio.Queue[int] = asyncio.Queue()

    def __call__(self, control: socket.socket, mark: int) -> FakeKeeper:
        self._control = control.dup()
        self._control.setblocking(False)
        if not self._boots:
            self.says(READY, 0)
        asyncio.get_running_loop().add_reader(self._control, self._listen)
        return self

    def _listen(self) -> None:
        message, fds, _, _ = socket.recv_fds(self._control, COMMAND.size, 1)
        for fd in fds:
            os.close(fd)
        if not message:
            self._leave()
            return
        command, number = COMMAND.unpack(message)
        if command == KILL:
            self._kills.put_nowait(number)

    async def told_to_kill(self) -> int:
        """The worker that the next KILL is for."""
        return await self._kills.get()

    def says(self, what: bytes, number: int, code: int = 0) -> None:
        self._control.sendall(REPORT.pack(what, number, code))

    def kill(self) -> None:
        self.killed = True
        self._leave()

    def wait(self) -> int:
        return -signal.SIGKILL

    def _leave(self) -> None:
        if self._control.fileno() != -1:
            asyncio.get_running_loop().remove_reader(self._control)
            self._control.close()


@pytest.fixture
def fake() -> FakeKeeper:
    return FakeKeeper()


@pytest.fixture
async def keeper(fake: FakeKeeper) -> AsyncIterator[Keeper]:
    keeper = Keeper(fake)
    yield keeper
    await keeper.aclose()


async def test_a_worker_whose_death_takes_long_costs_no_other_its_keeper(keeper: Keeper, fake: FakeKeeper) -> None:
    slow, other = keeper.start("acme"), keeper.start("bolt")
    slow.kill()
    for _ in range(2):  # it is told again when the time for an answer to the first is over
        assert await fake.told_to_kill() == slow.number
        fake.says(OBEYED, slow.number)
    assert not keeper.lost
    assert not slow.ended.done()
    assert not other.ended.done()
    fake.says(ENDED, slow.number, -signal.SIGKILL)
    assert await slow.ended == -signal.SIGKILL
    assert not other.ended.done()
    slow.close()
    other.close()


async def test_a_worker_that_does_not_die_is_waited_for_until_patience_ends_and_its_keeper_stays(
    keeper: Keeper, fake: FakeKeeper
) -> None:
    worker = keeper.start("acme")
    end = asyncio.create_task(worker.end())
    assert await fake.told_to_kill() == worker.number
    fake.says(OBEYED, worker.number)
    cancels = 0
    while not end.done():
        end.cancel()
        cancels += 1
        await asyncio.sleep(0)  # until it has been heard
    assert end.cancelled()
    assert cancels == CANCELS_BEFORE_GIVING_UP + 1
    assert not keeper.lost
    fake.says(ENDED, worker.number, -signal.SIGKILL)
    assert await worker.ended == -signal.SIGKILL


async def test_a_keeper_that_acknowledges_nothing_is_given_up_and_all_its_workers_with_it(
    keeper: Keeper, fake: FakeKeeper
) -> None:
    one, other = keeper.start("acme"), keeper.start("bolt")
    one.kill()
    assert await fake.told_to_kill() == one.number
    assert await one.ended is None
    assert await other.ended is None
    assert keeper.lost
    assert fake.killed
    one.close()
    other.close()


async def test_a_keeper_that_has_obeyed_and_then_stands_still_is_given_up_as_well(
    keeper: Keeper, fake: FakeKeeper
) -> None:
    worker = keeper.start("acme")
    worker.kill()
    assert await fake.told_to_kill() == worker.number
    fake.says(OBEYED, worker.number)
    assert await worker.ended is None
    assert fake.killed
    assert await fake.told_to_kill() == worker.number
    worker.close()


async def test_a_keeper_that_boots_is_given_the_time_for_it_and_then_obeys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("deadlinemesh.tool_runner.workers.keeper.KILLS_WITHIN", 0.0)
    fake = FakeKeeper(boots=True)
    keeper = Keeper(fake)
    worker, other = keeper.start("acme"), keeper.start("bolt")
    worker.kill()
    for _ in range(10):  # in each of them it is looked whether it has obeyed
        await asyncio.sleep(0)
    assert not keeper.lost
    assert await fake.told_to_kill() == worker.number
    for what in (READY, OBEYED, ENDED):
        fake.says(what, worker.number, -signal.SIGKILL)
    assert await worker.ended == -signal.SIGKILL
    assert not other.ended.done()
    await keeper.aclose()
    worker.close()
    other.close()


async def test_a_keeper_that_does_not_get_ready_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deadlinemesh.tool_runner.workers.keeper.READY_WITHIN", 0.1)
    fake = FakeKeeper(boots=True)
    worker = Keeper(fake).start("acme")
    worker.kill()
    assert await worker.ended is None
    assert fake.killed
    worker.close()


async def test_a_keeper_that_is_ready_and_then_stands_still_is_given_up_for_what_it_was_told_before() -> None:
    fake = FakeKeeper(boots=True)
    worker = Keeper(fake).start("acme")
    worker.kill()
    assert await fake.told_to_kill() == worker.number
    fake.says(READY, 0)
    assert await worker.ended is None
    assert fake.killed
    worker.close()
