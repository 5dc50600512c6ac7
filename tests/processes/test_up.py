"""`dmesh up` and what it keeps up: processes that are ready, restarted, drained, and never left behind."""

from __future__ import annotations

import asyncio
import json
import os
import re
import select
import signal
import socket
import stat
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.support.up import DMESH, GUARD, Up, dmesh, ended, environment, up

from deadlinemesh.client import DeadlineMesh
from deadlinemesh.errors import MeshError, Unauthenticated
from deadlinemesh.identity.keys import hash_key
from deadlinemesh.local.state import MeshState
from deadlinemesh.v1 import orchestrator_pb2

pytestmark = pytest.mark.processes


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Up]:
    """A mesh to break."""
    with up(tmp_path) as mesh:
        yield mesh


@asynccontextmanager
async def client(mesh: Up, tier: str = "enterprise") -> AsyncIterator[DeadlineMesh]:
    async with DeadlineMesh(mesh.address, api_key=mesh.api_key(tier)) as one:
        yield one


async def test_every_service_says_it_serves(mesh: Up) -> None:
    for address in (mesh.address, *mesh.inner.values()):
        async with grpc.aio.insecure_channel(address) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=GUARD)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_only_its_owner_may_read_what_it_writes(mesh: Up) -> None:
    assert stat.S_IMODE(mesh.state_file.stat().st_mode) == 0o600
    policy = Path(mesh.state.policy_file)
    assert stat.S_IMODE(policy.stat().st_mode) == 0o600
    assert stat.S_IMODE(policy.parent.stat().st_mode) == 0o700


def test_a_run_is_answered_on_the_command_line(mesh: Up) -> None:
    done = mesh.dmesh("run", "Calculate 2 * 21", "--model", "fast", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    run = json.loads(done.stdout)
    assert "42" in run["answer"]
    assert (run["tenant"], run["tier"], run["outcome"], run["partial"]) == ("acme", "enterprise", "COMPLETED", False)
    assert sum(run["ledger"].values()) == pytest.approx(run["elapsed_ms"], abs=0.1)
    # A change of phase is told an instant after it was charged; how long an instant is, is the machine's affair.
    segments = [one["ms"] for one in run["waterfall"] if one["kind"] != "tool"]
    assert sum(segments) == pytest.approx(run["elapsed_ms"] - run["ledger"]["unattributed"], rel=0.02)


def test_a_pipe_gets_plain_text(mesh: Up) -> None:
    done = mesh.dmesh("run", "Calculate 2 * 21", "--model", "fast", "--tenant", "cora")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert "COMPLETED  cora, free tier, fast" in done.stdout
    assert "\n  calculate" in done.stdout
    assert max(map(len, done.stdout.partition("phase / tool")[2].splitlines())) <= 80


def test_where_a_character_cannot_be_written_another_stands_for_it(mesh: Up) -> None:
    done = subprocess.run(
        [*DMESH, "run", "Tell me about the café", "--model", "fast"],
        env=environment(mesh.state_file) | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=GUARD,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"caf?" in done.stdout
    assert b"\nadmission" in done.stdout


def test_a_spent_deadline_is_a_partial_answer_and_success(mesh: Up) -> None:
    done = mesh.dmesh("run", "Run the long task for 20 seconds", "--deadline", "1s", "--model", "fast", "--json")
    run = json.loads(done.stdout)
    assert (done.returncode, run["outcome"], run["partial"]) == (0, "DEADLINE_SPENT", True)
    assert run["answer"]
    assert run["elapsed_ms"] <= 1000


def test_refusals_name_the_field_and_exit_with_3(mesh: Up) -> None:
    done = mesh.dmesh("run", "hello", "--model", "nope", "--tool", "none_such")
    assert done.returncode == 3
    assert "model: 'nope' is unknown or not yours: one of demo, fast" in done.stderr
    assert mesh.dmesh("run", "hello", "--key", "no-such-key").returncode == 3


def test_ctrl_c_cancels_a_run(mesh: Up) -> None:
    command = [*DMESH, "run", "Run the long task for 20 seconds", "--model", "fast"]
    with subprocess.Popen(
        command, env=environment(mesh.state_file), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert any("tool long_task" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=GUARD)
    assert process.returncode == 130
    assert complaints.strip() == "cancelled"


async def test_ctrl_c_in_its_terminal_lets_runs_finish(own: Up) -> None:
    async with client(own) as mesh, aclosing(mesh.run("Run the long task for 1 second", model="fast")) as events:
        async for event in events:
            if event.HasField("tool_call_started"):
                os.killpg(own.process.pid, signal.SIGINT)
            if event.HasField("finished"):
                assert event.finished.outcome == orchestrator_pb2.OUTCOME_COMPLETED
    assert own.process.wait(GUARD) == 0
    assert own.processes() == []
    assert not own.state_file.exists()


async def test_a_second_signal_ends_everything_at_once(own: Up) -> None:
    async def watch(mesh: DeadlineMesh) -> None:
        async for event in mesh.run("Run the long task for 60 seconds", model="fast"):
            if event.HasField("tool_call_started"):
                own.process.send_signal(signal.SIGINT)
                own.wait_for_log("draining")
                own.process.send_signal(signal.SIGINT)

    async with client(own) as mesh:
        with pytest.raises(MeshError):
            await watch(mesh)
    assert own.process.wait(GUARD) == 0
    assert own.processes() == []


def test_nothing_outlives_a_killed_supervisor(own: Up) -> None:
    pids = own.processes()
    assert {own.process.pid, *own.state.processes.values()} <= set(pids)
    own.process.kill()
    ended(pids)
    assert own.processes() == []


def test_what_a_killed_supervisor_leaves_is_cleared_by_the_next_but_not_what_a_living_one_has(
    own: Up, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with up(other, temporary=tmp_path) as living:
        left, kept = Path(own.state.policy_file).parent, Path(living.state.policy_file).parent
        assert left.parent == kept.parent == tmp_path
        own.process.kill()
        own.process.wait(GUARD)
        ended(list(own.state.processes.values()))
        assert (left / "mesh-token").exists(), "nobody could remove it"
        assert "no mesh is known" in own.dmesh("run", "hello").stderr
        with up(tmp_path) as following:
            assert not left.exists()
            assert (kept / "mesh-token").exists()
            assert following.state.pid != own.state.pid
        assert living.dmesh("run", "Calculate 2 * 21", "--model", "fast").returncode == 0
    assert list(tmp_path.glob("dmesh-*")) == []


@pytest.mark.parametrize("service", ["llm-proxy", "tool-runner", "orchestrator", "demo-world"])
def test_a_killed_service_comes_back_and_works(own: Up, service: str) -> None:
    os.kill(own.state.processes[service], signal.SIGKILL)
    assert "killed by SIGKILL" in own.wait_for_log(f"{service} died")
    own.wait_for_log(f"{service} is back")
    done = own.dmesh("run", 'Look up the customer "northwind" and calculate 2 * 21', "--model", "fast", "--json")
    run = json.loads(done.stdout)
    assert (done.returncode, run["outcome"]) == (0, "COMPLETED"), run
    assert {one["label"]: one["status"] for one in run["waterfall"] if one["kind"] == "tool"} == {
        "crm_lookup": "OK",
        "calculate": "OK",
    }
    told = json.loads(own.state_file.read_text())["processes"]
    assert told[service] != own.state.processes[service]
    assert told[service] in own.processes()


def keeper_of(mesh: Up) -> int:
    """The process that keeps the tool-runner's workers."""
    runner = str(mesh.state.processes["tool-runner"])
    return int(subprocess.run(["pgrep", "--parent", runner], capture_output=True, text=True, check=True).stdout)


@contextmanager
def up_with(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Up]:
    """A mesh to break, with the tools of a module of the tests."""
    root = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))))
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "tiers: {free: {run_budget: 30s, iterations: 2}}\n"
        f"tenants: {{acme: {{tier: free, api_keys: ['{hash_key('any')}']}}}}\n"
        "models: {fast: {provider: scripted, first_token: 0, per_token: 0}}\n"
        f"tools: {{modules: [{module}]}}\n"
    )
    with up(tmp_path, "--policy", str(policy)) as mesh:
        yield mesh


@pytest.fixture
def with_keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Up]:
    """A mesh to break, with tools that run in processes."""
    with up_with("tests.support.blocking_tools", tmp_path, monkeypatch) as mesh:
        yield mesh


def test_what_a_tool_leaves_holds_up_no_end_and_ends_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with up_with("tests.support.leaving_tools", tmp_path, monkeypatch) as mesh:
        done = mesh.dmesh("run", "Run leave_process", "--json")
        (left,) = re.findall(r"left (\d+)", done.stdout)
        began = time.monotonic()
        assert mesh.stop() == 0
        assert time.monotonic() - began < 30  # it lives for ever
        assert not Path(f"/proc/{left}").exists()


@pytest.mark.parametrize("how", [signal.SIGCONT, signal.SIGSTOP])
def test_a_killed_tool_runner_takes_its_keeper_along(with_keeper: Up, how: signal.Signals) -> None:
    keeper = keeper_of(with_keeper)
    os.kill(keeper, how)
    os.kill(with_keeper.state.processes["tool-runner"], signal.SIGKILL)
    ended([keeper])
    with_keeper.wait_for_log("tool-runner is back on port")


def test_a_keeper_that_is_stopped_again_is_killed(with_keeper: Up) -> None:
    handle = os.pidfd_open(keeper_of(with_keeper))
    try:
        os.kill(with_keeper.state.processes["tool-runner"], signal.SIGKILL)
        with suppress(ProcessLookupError):
            while not select.select([handle], [], [], 0)[0]:
                signal.pidfd_send_signal(handle, signal.SIGSTOP)
    finally:
        os.close(handle)
    with_keeper.wait_for_log("tool-runner is back on port")


def test_services_that_were_stopped_end_with_the_mesh(with_keeper: Up) -> None:
    os.kill(keeper_of(with_keeper), signal.SIGSTOP)
    os.kill(with_keeper.state.processes["tool-runner"], signal.SIGSTOP)
    assert with_keeper.stop() == 0
    assert with_keeper.processes() == []


def test_a_wrong_policy_is_told_line_by_line(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(dmesh(tmp_path / "up.json", "policy", "show").stdout.replace("tier: free", "tier: fre"))
    done = dmesh(tmp_path / "up.json", "up", "--port", "0", "--policy", str(policy))
    assert done.returncode == 2
    line = next(n for n, text in enumerate(policy.read_text().splitlines(), 1) if "tier: fre" in text)
    assert f"{policy}:{line}: tenants.cora.tier" in done.stderr


@pytest.mark.parametrize(
    ("was", "wanted", "place"),
    [
        ("builtin]", "builtin, acme_tools]", "tools.modules[1]: acme_tools cannot be imported: "),
        ("  acme:\n", "  acme:\n    tools: [calcullate]\n", "tenants.acme.tools[0]: 'calcullate' is not a tool; "),
    ],
)
def test_a_policy_that_no_tool_runner_would_have_is_told_line_by_line(
    tmp_path: Path, was: str, wanted: str, place: str
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(dmesh(tmp_path / "up.json", "policy", "show").stdout.replace(was, wanted, 1))
    done = dmesh(tmp_path / "up.json", "up", "--port", "0", "--policy", str(policy))
    assert done.returncode == 2
    line = next(n for n, text in enumerate(policy.read_text().splitlines(), 1) if wanted.split()[-1] in text)
    assert f"{policy}:{line}: {place}" in done.stderr


async def test_it_goes_over_to_its_policy_file_as_that_changes(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    shown = dmesh(tmp_path / "up.json", "policy", "show").stdout
    policy.write_text(shown)
    with up(tmp_path, "--policy", str(policy), "--no-demo-world") as mesh:
        assert set(policy_status(mesh, 0)) == {"dmesh up", "llm-proxy", "orchestrator", "tool-runner"}
        newcomer = f"tenants:\n  dune:\n    tier: professional\n    api_keys: [{hash_key('replaced')!r}]"
        policy.write_text(shown.replace("tenants:", newcomer))
        mesh.wait_for_log("dune is new, professional; its API key: ")
        now = MeshState.from_json(mesh.state_file.read_text())
        assert {name: now.tenants[name] for name in mesh.tenants} == mesh.tenants
        async with DeadlineMesh(mesh.address, api_key=now.tenants["dune"].api_key) as dune:
            assert await known(dune)
            policy.write_text(shown.replace("tier: free", "tier: fre"))
            mesh.wait_for_log(f"the policy in force is kept, as the new one cannot be used: {policy}:")
            assert await known(dune)
        refused = policy_status(mesh, 1)
        assert "tenants.cora.tier" in refused["dmesh up"]["why"]
        assert len({one["digest"] for name, one in refused.items() if name != "dmesh up"}) == 1
        assert {one["why"] for name, one in refused.items() if name != "dmesh up"} == {""}
        policy.write_text(shown.replace("tier: enterprise", "tier: enterprise\n    dedicated: true"))
        mesh.wait_for_log("restart all processes for")


async def test_a_run_of_a_tenant_that_is_deleted_goes_on_to_its_end(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    shown = dmesh(tmp_path / "up.json", "policy", "show").stdout
    policy.write_text(shown)
    with up(tmp_path, "--policy", str(policy), "--no-demo-world") as mesh:
        async with client(mesh, "professional") as bolt:
            finished = None
            async for event in bolt.run("Run the long task for 5 seconds", model="fast"):
                if event.HasField("tool_call_started"):
                    policy.write_text(without_tenant(shown, "bolt"))
                    mesh.wait_for_log("the policy file has changed")
                finished = event.finished if event.HasField("finished") else None
            assert finished is not None
            assert finished.outcome == orchestrator_pb2.OUTCOME_COMPLETED, finished.detail
            with pytest.raises(Unauthenticated):
                await bolt.list_runs()


def without_tenant(policy: str, name: str) -> str:
    """The policy file without one of its tenants."""
    return re.sub(rf"^  {name}:\n(?:    .*\n|\s*#.*\n|\n)*", "", policy, flags=re.MULTILINE)


def policy_status(mesh: Up, code: int) -> dict[str, Any]:
    """What `dmesh policy status` tells of each process."""
    done = mesh.dmesh("policy", "status", "--json")
    assert (done.returncode, done.stderr) == (code, "")
    assert mesh.dmesh("policy", "status").returncode == code
    return {one["process"]: one for one in json.loads(done.stdout)["processes"]}


async def known(client: DeadlineMesh) -> bool:
    """Whether its key is known, as it will be when the orchestrator has looked at its policy file."""
    for _ in range(int(GUARD / 0.05)):
        try:
            await client.list_runs()
        except Unauthenticated:
            await asyncio.sleep(0.05)
        else:
            return True
    return False


def test_it_works_whatever_proxy_the_environment_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    with up(tmp_path) as mesh:
        done = mesh.dmesh("run", 'Look up the customer "northwind"', "--model", "fast", "--json")
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["outcome"] == "COMPLETED"


def test_a_service_that_cannot_start_is_told_with_its_log(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = dmesh(tmp_path / "up.json", "up", "--port", str(port), "--no-demo-world")
    assert done.returncode == 1
    assert "orchestrator did not start: exit code 2" in done.stderr
    assert f"cannot listen on 127.0.0.1:{port}: is it taken by another process?" in done.stderr
    assert not (tmp_path / "up.json").exists()


def test_without_a_mesh_it_says_how_to_get_one(tmp_path: Path) -> None:
    done = dmesh(tmp_path / "up.json", "run", "hello")
    assert done.returncode == 2
    assert "start one with `dmesh up`" in done.stderr
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    done = dmesh(tmp_path / "up.json", "run", "hello", "--address", f"127.0.0.1:{port}", "--key", "k")
    assert done.returncode == 4
