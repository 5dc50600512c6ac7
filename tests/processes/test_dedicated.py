"""A tenant with processes of its own, while those of all others stand still, spin or are killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from tests.support.up import GUARD, Up, dmesh, up

from deadlinemesh.client import DeadlineMesh
from deadlinemesh.errors import DeadlineSpent, DeadlineSpentUpstream, MeshError, UpstreamFailed
from deadlinemesh.v1 import common_pb2, orchestrator_pb2

pytestmark = pytest.mark.processes

SHORT, LONG = "Run the long task for 2 seconds", "Run the long task for 20 seconds"
DEADLINE = 4.0


class Own:
    """A mesh in which acme has processes of its own, and what can befall those of the others."""

    def __init__(self, mesh: Up, spinning: Path) -> None:
        self.mesh = mesh
        self._spinning = spinning

    @asynccontextmanager
    async def client(self, tenant: str) -> AsyncIterator[DeadlineMesh]:
        async with DeadlineMesh(self.mesh.address, api_key=self.mesh.tenants[tenant].api_key) as one:
            yield one

    def pid(self, process: str) -> int:
        """Of the present process of this name."""
        pid: int = json.loads(self.mesh.state_file.read_text())["processes"][process]
        return pid

    @contextmanager
    def befallen(self, process: str, how: str) -> Iterator[Callable[[], None]]:
        """Gives what makes it happen; in the end the mesh is whole again."""
        pid, logged = self.pid(process), len(self.mesh.log)

        def happen() -> None:
            self._spinning.touch()
            os.kill(pid, {"stands still": signal.SIGSTOP, "spins": signal.SIGUSR1, "is killed": signal.SIGKILL}[how])

        try:
            yield happen
        finally:
            self._spinning.unlink(missing_ok=True)
            if how == "is killed":
                deadline = time.monotonic() + GUARD
                while not any(f"{process} is back" in line for line in self.mesh.log[logged:]):
                    assert time.monotonic() < deadline, self.mesh.log
                    time.sleep(0.05)
            else:
                os.kill(pid, signal.SIGCONT)


def dedicating_acme(folder: Path) -> Path:
    """The embedded policy with processes of acme's own."""
    policy = folder / "policy.yaml"
    shown = dmesh(folder / "up.json", "policy", "show").stdout
    policy.write_text(shown.replace("tier: enterprise", "tier: enterprise\n    dedicated: true"))
    return policy


@pytest.fixture  # each test its own: what an orchestrator has learned of a service that stood still is right, and long remembered
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Own]:
    folder = tmp_path_factory.mktemp("dedicated")
    policy, spinning = dedicating_acme(folder), folder / "spinning"
    with pytest.MonkeyPatch.context() as patch:
        path = os.pathsep.join(
            filter(None, (str(Path(__file__).parents[2] / "benchmarks" / "spinning"), os.environ.get("PYTHONPATH")))
        )
        patch.setenv("PYTHONPATH", path)
        patch.setenv("SPIN_WHILE", str(spinning))
        with up(folder, "--policy", str(policy)) as mesh:
            yield Own(mesh, spinning)
            assert mesh.stop() == 0


class Told:
    """What a client was told of its run, and after how many seconds."""

    def __init__(self) -> None:
        self.working = asyncio.Event()
        self.finished: orchestrator_pb2.RunFinished | None = None
        self.error: MeshError | None = None
        self.took = 0.0

    async def of(self, client: DeadlineMesh, prompt: str) -> Told:
        """Run `prompt` to its end."""
        began = time.monotonic()
        try:
            async with aclosing(client.run(prompt, deadline=DEADLINE, model="fast")) as events:
                async for event in events:
                    if event.HasField("tool_call_started"):
                        self.working.set()
                    if event.HasField("finished"):
                        self.finished = event.finished
        except MeshError as error:
            self.error = error
        self.took = time.monotonic() - began
        self.working.set()  # nobody has to wait for it any more
        return self


async def all_working(*told: Told) -> None:
    """Return when each run has a tool at work."""
    async with asyncio.timeout(GUARD):
        await asyncio.gather(*(one.working.wait() for one in told))
    assert [one.error or one.finished for one in told if one.took] == []


def test_every_process_is_told_and_kept(own: Own) -> None:
    pools = {"orchestrator", "orchestrator:acme", "tool-runner", "tool-runner:acme"}
    state = own.mesh.state
    assert set(state.processes) == {*pools, "edge", "llm-proxy", "demo-world"}
    assert set(state.inner) == {*pools, "llm-proxy"}
    assert len({state.address, *state.inner.values()}) == 6


@pytest.mark.parametrize("process", ["orchestrator", "tool-runner"])
@pytest.mark.parametrize("how", ["stands still", "spins", "is killed"])
async def test_what_befalls_the_shared_pool_does_not_touch_a_dedicated_tenant(own: Own, process: str, how: str) -> None:
    async with own.client("acme") as acme, own.client("bolt") as bolt:
        first, others = Told(), [Told() for _ in range(3)]
        with own.befallen(process, how) as happen:
            runs = [asyncio.ensure_future(first.of(acme, SHORT))]
            runs += [asyncio.ensure_future(other.of(bolt, LONG)) for other in others]
            await all_working(first, *others)
            happen()
            later = await asyncio.gather(*(Told().of(acme, prompt) for prompt in (SHORT, LONG)))
            await asyncio.gather(*runs)
        completed, spent = orchestrator_pb2.OUTCOME_COMPLETED, orchestrator_pb2.OUTCOME_DEADLINE_SPENT
        for told, outcome in ((first, completed), (later[0], completed), (later[1], spent)):
            assert told.finished is not None, told.error
            assert told.finished.outcome == outcome, told.finished
            assert told.took <= DEADLINE
            assert told.finished.ledger.unattributed_us < 0.02 * told.finished.ledger.elapsed_us
        for other in others:
            assert other.took < DEADLINE + 0.1
            if process == "tool-runner":
                assert other.finished is not None, other.error
                if how != "is killed":
                    assert other.finished.outcome == spent
            elif how == "is killed":
                assert isinstance(other.error, UpstreamFailed)
            else:
                assert isinstance(other.error, (DeadlineSpent, DeadlineSpentUpstream))
    # Whole again.
    async with own.client("bolt") as bolt:
        assert (await bolt.answer("Calculate 2 * 21", model="fast")).outcome == completed


async def test_what_befalls_a_dedicated_tenants_orchestrator_touches_nobody_else(own: Own) -> None:
    async with own.client("acme") as acme, own.client("bolt") as bolt:
        mine, other = Told(), Told()
        with own.befallen("orchestrator:acme", "is killed") as happen:
            runs = [asyncio.ensure_future(mine.of(acme, LONG)), asyncio.ensure_future(other.of(bolt, SHORT))]
            await all_working(mine, other)
            happen()
            await asyncio.gather(*runs)
        assert isinstance(mine.error, UpstreamFailed)
        assert other.finished is not None
        assert other.finished.outcome == orchestrator_pb2.OUTCOME_COMPLETED


async def test_the_way_through_the_edge_is_part_of_the_runs_admission(own: Own) -> None:
    async with own.client("acme") as acme:
        for _ in range(5):
            began = time.monotonic()
            finished = await acme.answer("hello", model="fast", deadline=DEADLINE)
            took = time.monotonic() - began
            ledger = finished.ledger
            spent = {one.phase: one.spent_us for one in ledger.phases}
            assert spent[common_pb2.PHASE_ADMISSION] > 0
            assert ledger.unattributed_us < 0.02 * ledger.elapsed_us
            assert took * 1e6 > ledger.elapsed_us


async def test_ctrl_c_lets_the_runs_of_every_pool_finish(tmp_path: Path) -> None:
    with up(tmp_path, "--policy", str(dedicating_acme(tmp_path))) as mesh:
        async with AsyncExitStack() as stack:
            told = [Told(), Told()]
            clients = [
                await stack.enter_async_context(DeadlineMesh(mesh.address, api_key=mesh.tenants[tenant].api_key))
                for tenant in ("acme", "bolt")
            ]
            runs = [asyncio.ensure_future(one.of(by, SHORT)) for one, by in zip(told, clients, strict=True)]
            await all_working(*told)
            os.killpg(mesh.process.pid, signal.SIGINT)
            await asyncio.gather(*runs)
        for one in told:
            assert one.finished is not None, one.error
            assert one.finished.outcome == orchestrator_pb2.OUTCOME_COMPLETED
        assert mesh.process.wait(GUARD) == 0
        assert mesh.processes() == []
