"""A policy file that changes under a running process: what is good comes into force, what is not leaves the last good one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.virtual import in_virtual_time, now

from deadlinemesh.deadline.scope import REPORT_ORPHAN_AFTER
from deadlinemesh.policy import GoOver, Policy, PolicyError, PolicyFile, PolicyStatus, Rest
from deadlinemesh.policy.follow import EVERY

GOOD = """
tiers:
  free: {run_budget: 30s, iterations: 2}
tenants:
  acme: {tier: free, api_keys: ["sha256:%s"]}
models:
  demo: {provider: scripted}
""" % ("0" * 64)


async def at_once(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call it here: no thread takes part in virtual time."""
    return function(*arguments)


class Process:
    """Uses what it is given, and keeps what it used."""

    def __init__(self, path: Path) -> None:
        self.file = PolicyFile(path, at_once)
        self.used = [self.file.load()]
        self.ended = asyncio.Event()
        self.endings = 0
        self.needed_for = 0.0
        self.told: list[PolicyStatus] = []

    def prepare(self, policy: Policy) -> GoOver:
        if "defective" in policy.models:
            raise RuntimeError("a defect")
        if "unusable" in policy.models:
            raise ValueError("models.unusable: this process cannot have it")

        def go_over() -> Rest:
            self.used.append(policy)
            return Rest(self._rest, self.needed_for)

        return go_over

    async def _rest(self) -> None:
        await self.ended.wait()
        self.endings += 1

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        task = asyncio.ensure_future(self.file.follow(self.prepare, self.told.append))
        try:
            yield
        finally:
            task.cancel()
            self.ended.set()
            await asyncio.wait({task})


def says(path: Path, text: str | None) -> None:
    """Write the file; None removes it."""
    if text is None:
        path.unlink()
    else:
        path.write_text(text)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(GOOD)
    return path


@in_virtual_time
async def test_a_change_is_in_force_soon_and_only_once(path: Path) -> None:
    process = Process(path)
    async with process.following():
        await asyncio.sleep(5 * EVERY)
        assert len(process.used) == 1
        says(path, GOOD.replace("30s", "60s"))
        await asyncio.sleep(5 * EVERY)
    assert [one.tiers["free"].run_budget for one in process.used] == [30.0, 60.0]


@in_virtual_time
async def test_a_file_that_is_swapped_behind_a_link_is_a_change(path: Path) -> None:
    linked = path.with_name("linked.yaml")
    linked.symlink_to(path)
    process = Process(linked)
    async with process.following():
        other = path.with_name("other.yaml")
        other.write_text(GOOD.replace("30s", "60s"))
        swapped = path.with_name("swapped.yaml")
        swapped.symlink_to(other)
        swapped.rename(linked)
        await asyncio.sleep(2 * EVERY)
    assert process.used[-1].tiers["free"].run_budget == 60.0


@in_virtual_time
async def test_what_cannot_be_used_is_told_once_and_the_last_good_policy_stays(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    process = Process(path)
    with caplog.at_level(logging.ERROR, "deadlinemesh.policy"):
        async with process.following():
            for broken, why in (
                (GOOD.replace("30s", "soon"), f"{path}:3: tiers.free.run_budget"),
                (GOOD.replace("demo:", "unusable:"), "models.unusable: this process cannot have it"),
                (GOOD.replace("demo:", "defective:"), "going over to the new one failed"),
                (None, "cannot be read"),
            ):
                caplog.clear()
                says(path, broken)
                await asyncio.sleep(5 * EVERY)
                assert [why in record.getMessage() for record in caplog.records] == [True], caplog.text
            assert len(process.used) == 1
            says(path, GOOD.replace("30s", "60s"))
            await asyncio.sleep(2 * EVERY)
    assert process.used[-1].tiers["free"].run_budget == 60.0


@in_virtual_time
async def test_a_refusal_is_told_until_a_change_is_in_force(path: Path) -> None:
    process = Process(path)
    first = process.file.status.digest
    async with process.following():
        says(path, GOOD.replace("30s", "soon"))
        await asyncio.sleep(3 * EVERY)
        says(path, None)
        await asyncio.sleep(3 * EVERY)
        says(path, GOOD)
        await asyncio.sleep(3 * EVERY)
    wrong, gone, mended = process.told
    assert (wrong.digest, gone.digest, mended.digest) == (first, first, first)
    assert wrong.refused not in ("", first)
    assert "tiers.free.run_budget" in wrong.why
    assert (gone.refused, mended.refused, mended.why) == ("unreadable", "", "")
    assert "cannot be read" in gone.why


@in_virtual_time
async def test_what_runs_still_need_ends_later_but_not_after_the_process(path: Path) -> None:
    process = Process(path)
    process.needed_for = 30.0
    process.ended.set()
    async with process.following():
        says(path, GOOD.replace("30s", "60s"))
        await asyncio.sleep(20.0)
        assert process.endings == 0
        await asyncio.sleep(20.0)
        assert process.endings == 1
        says(path, GOOD)
        await asyncio.sleep(2 * EVERY)
        assert process.endings == 1
    assert process.endings == 2


@in_virtual_time
async def test_a_second_change_does_not_wait_for_the_end_of_what_the_first_has_replaced(path: Path) -> None:
    process = Process(path)
    async with process.following():
        for budget in ("60s", "90s"):
            says(path, GOOD.replace("30s", budget))
            await asyncio.sleep(2 * EVERY)
        assert process.endings == 0
        assert process.used[-1].tiers["free"].run_budget == 90.0
    assert process.endings == 2


@in_virtual_time
async def test_an_orphan_of_the_policy_before_holds_up_no_end(path: Path) -> None:
    process = Process(path)
    following = asyncio.ensure_future(process.file.follow(process.prepare))
    says(path, GOOD.replace("iterations: 2", "iterations: 3"))
    await asyncio.sleep(2 * EVERY)
    following.cancel()
    began_at = now()
    await asyncio.wait({following}, timeout=60)
    assert following.cancelled()
    assert now() - began_at == pytest.approx(REPORT_ORPHAN_AFTER)


def test_a_file_that_is_wrong_from_the_first_is_an_error(path: Path) -> None:
    path.write_text("tiers: {}")
    with pytest.raises(PolicyError):
        PolicyFile(path).load()
