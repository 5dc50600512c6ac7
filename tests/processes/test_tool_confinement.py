"""What a worker may see: its tenant's call, and nothing of the mesh, of the tool-runner and of other tenants."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.chaos.processes import alive
from tests.processes.test_async_tools import POLICY, ToolRunner, gone
from tests.processes.test_tool_workers import running

pytestmark = pytest.mark.processes

SECRETS = {"DMESH_MESH_TOKEN": "secret-of-the-mesh", "OPENAI_API_KEY": "key-of-a-provider", "CRM_TOKEN": "of-a-tool"}


@pytest.fixture
async def runner(tmp_path: Path) -> AsyncIterator[ToolRunner]:
    tools: dict[str, Any] = {**POLICY["tools"], "worker_environment": ["CRM_TOKEN"]}
    one = ToolRunner(tmp_path, {**POLICY, "tools": tools}, **SECRETS, TMPDIR=str(tmp_path))
    await one.start()
    yield one
    await one.close()


async def secret(runner: ToolRunner, tenant: str) -> dict[str, Any]:
    """What a worker of `tenant` says about itself after it has written a secret."""
    told: dict[str, Any] = json.loads(await runner.call("keep_secret", tenant))
    return told


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])


async def test_a_worker_has_the_variables_that_policy_names(runner: ToolRunner) -> None:
    seen = (await secret(runner, "acme"))["environment"]
    assert seen["CRM_TOKEN"] == "of-a-tool"
    assert not {"DMESH_MESH_TOKEN", "OPENAI_API_KEY", "DMESH_LISTEN"} & seen.keys()
    assert "PATH" in seen


async def test_no_secret_is_in_keeper_or_worker(runner: ToolRunner) -> None:
    worker = await secret(runner, "acme")
    keeper = parent(worker["pid"])
    for pid in (keeper, worker["pid"]):
        held = b"".join([contents(f"/proc/{pid}/environ"), contents(f"/proc/{pid}/cmdline"), memory(pid)])
        assert b"secret-of-the-mesh" not in held
        assert b"key-of-a-provider" not in held
    assert b"of-a-tool" not in memory(keeper)
    assert len(os.listdir(f"/proc/{worker['pid']}/fd")) <= 4  # 0, 1, 2 and its socket


def contents(path: str) -> bytes:
    return Path(path).read_bytes()


def memory(pid: int) -> bytes:
    """What a process has written into its memory."""
    found = []
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as content:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights, *_ = line.split()
            if rights.startswith("rw"):
                start, end = (int(one, 16) for one in span.split("-"))
                content.seek(start)
                found.append(content.read(end - start))
    return b"".join(found)


async def test_a_worker_reads_no_other_process_and_no_other_files(runner: ToolRunner) -> None:
    acme = await secret(runner, "acme")
    keeper = parent(acme["pid"])
    others = [runner.service.life.process.pid, keeper, acme["pid"]]
    temporary = str(Path(acme["cwd"]).parent)
    with tempfile.NamedTemporaryFile("w") as shared:
        os.chmod(shared.name, 0o644)
        paths = [acme["file"], acme["cwd"], f"{acme['cwd']}/here", temporary, shared.name, "/tmp", "/dev/shm"]
        found = json.loads(await runner.call("spy", "bolt", pids=others, paths=paths))["found"]
    assert found == []
    assert all(map(alive, others))


async def test_a_worker_has_a_folder_for_itself_alone(runner: ToolRunner) -> None:
    acme, bolt = await secret(runner, "acme"), await secret(runner, "bolt")
    assert acme["cwd"] == acme["home"] == str(Path(acme["file"]).parent)
    assert acme["mode"] == 0o700
    assert acme["cwd"] != bolt["cwd"]
    assert acme["semaphore"]
    assert acme["shell"] == f"{acme['home']}\n1\n"


async def test_a_worker_has_no_rights_and_no_way_to_any(runner: ToolRunner) -> None:
    worker = await secret(runner, "acme")
    assert worker["capabilities"][:2] == [0, 0]
    assert worker["no_new_privileges"] == "1"
    if os.geteuid() == 0:
        assert worker["capabilities"] == [0] * 5


async def test_a_folder_is_gone_with_its_worker(runner: ToolRunner) -> None:
    worker = await secret(runner, "acme")
    await runner.call("crash", "acme", how="exit")
    async with asyncio.timeout(20):
        while Path(worker["cwd"]).exists():  # noqa: ASYNC110, ASYNC240  # removed by another process
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("killed", [["tool-runner"], ["keeper", "tool-runner"]])
async def test_folders_of_the_killed_are_removed(tmp_path: Path, killed: list[str]) -> None:
    one = ToolRunner(tmp_path, POLICY, TMPDIR=str(tmp_path))
    await one.start()
    worker = await secret(one, "acme")
    keeper = parent(worker["pid"])
    if "keeper" in killed:
        os.kill(keeper, signal.SIGSTOP)  # so that it tidies up for nobody
        await one.service.kill()
        os.kill(keeper, signal.SIGKILL)
    else:
        await one.service.kill()
    await gone([keeper, worker["pid"]])
    await one.start()
    assert json.loads(await one.call("whoami"))["calls"] == 1
    async with asyncio.timeout(20):
        while Path(worker["cwd"]).exists():  # noqa: ASYNC110, ASYNC240  # removed by another process
            await asyncio.sleep(0.02)
    await one.close()
    assert [name for name in os.listdir(tmp_path) if name.startswith("dmesh-")] == []


async def test_a_change_of_variables_reaches_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRM_TOKEN", "of-a-tool")
    async with running() as runner:
        before = json.loads((await runner.call("keep_secret")).content)
        runner.use(worker_environment=["CRM_TOKEN"])
        after = json.loads((await runner.call("keep_secret")).content)
    assert "CRM_TOKEN" not in before["environment"]
    assert after["environment"]["CRM_TOKEN"] == "of-a-tool"
    assert before["pid"] != after["pid"]


_SPYING = """
import asyncio, json, os
from tests.processes.test_tool_workers import running
from tests.processes.test_async_tools import gone

async def main():
    async with running() as runner:
        acme = json.loads((await runner.call("keep_secret", "acme")).content)
        others = [os.getpid(), int(open(f"/proc/{acme['pid']}/stat").read().rpartition(") ")[2].split()[1]), acme["pid"]]
        paths = [acme["file"], acme["cwd"], "/tmp"]
        spied = json.loads((await runner.call("spy", "bolt", pids=others, paths=paths)).content)
        bolt = json.loads((await runner.call("keep_secret", "bolt")).content)
        stay = runner.begin("stay", "acme", how="daemon")
        await stay.told.wait()
        pids = stay.pids
        os.kill(others[1], 9)
        await stay.task
        await gone(pids)
    print(json.dumps({"uids": [acme["uid"], bolt["uid"]], "found": spied["found"]}))

from deadlinemesh.tool_runner.workers.confinement import forbid_dumps
forbid_dumps()
asyncio.run(main())
"""

_SYSTEM_PYTHON = shutil.which("python3.11", path="/usr/bin") or ""


@pytest.mark.parametrize("user", ["root", "nobody"])
async def test_confinement_holds_for_any_user(user: str) -> None:
    if os.geteuid() != 0 or not _SYSTEM_PYTHON:
        reason = "needs root, and a Python that every user may read"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    root = Path(__file__).parents[2]
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    found = subprocess.run(  # noqa: ASYNC221  # nothing else goes on here
        [
            *(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if user == "nobody" else []),
            _SYSTEM_PYTHON,
            "-c",
            _SPYING,
        ],
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": os.pathsep.join(map(str, (root, root / "services", packages))),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    told = json.loads(found.stdout)
    acme, bolt = told["uids"]
    assert told["found"] == []
    if user == "root":
        assert 61184 <= acme <= 65519
        assert 61184 <= bolt <= 65519
        assert acme != bolt
    else:
        assert acme == bolt == 65534
