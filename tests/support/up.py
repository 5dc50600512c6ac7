"""`dmesh up` as a real process, for the tests that need one."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import deadlinemesh
from deadlinemesh.local.state import MeshState, TenantState

__all__ = ["DMESH", "GUARD", "Up", "dmesh", "ended", "environment", "up"]

DMESH = [sys.executable, "-m", "deadlinemesh.cli"]
GUARD = 60.0
"""Seconds after which a test that waits for what does not come fails. Nothing waits that long unless it is broken."""


def environment(state_file: Path) -> dict[str, str]:
    """For a `dmesh` of the tests: this checkout's package, and no mesh but the one that `state_file` tells of."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("DMESH_")}
    path = os.pathsep.join(filter(None, (str(Path(deadlinemesh.__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    # A killed `dmesh up` cannot remove its folder: pytest does.
    if os.geteuid():  # who is not root could not look at its processes
        own["DMESH_DUMPABLE"] = "true"
    return own | {"PYTHONPATH": path, "DMESH_STATE_FILE": str(state_file), "TMPDIR": str(state_file.parent)}


def dmesh(state_file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a `dmesh` command to its end."""
    return subprocess.run(
        [*DMESH, *arguments], env=environment(state_file), capture_output=True, text=True, timeout=GUARD
    )


class Up:
    """A mesh that is up, and the process that keeps it up."""

    def __init__(self, process: subprocess.Popen[str], state_file: Path) -> None:
        self.process = process
        self.state_file = state_file
        self.log: list[str] = []
        self._logged = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            process.wait(GUARD)
            self._reader.join(GUARD)
            raise AssertionError(f"dmesh up ended with {process.returncode}: {self.log}")
        self.state = MeshState.from_json(line)

    @property
    def address(self) -> str:
        return self.state.address

    @property
    def tenants(self) -> dict[str, TenantState]:
        return self.state.tenants

    @property
    def mesh_token(self) -> str:
        return self.state.mesh_token

    @property
    def inner(self) -> dict[str, str]:
        return self.state.inner

    def api_key(self, tier: str) -> str:
        """The key of a tenant of that tier."""
        return next(tenant.api_key for tenant in self.tenants.values() if tenant.tier == tier)

    def dmesh(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a `dmesh` command that finds this mesh by itself."""
        return dmesh(self.state_file, *arguments)

    def wait_for_log(self, text: str) -> str:
        """The first line on standard error that holds `text`, as soon as there is one."""
        with self._logged:
            found = self._logged.wait_for(lambda: [line for line in self.log if text in line], GUARD)
        assert found, f"{text!r} was never logged: {self.log}"
        return found[0]

    def processes(self) -> list[int]:
        """Every living process of this mesh: they all have its state file in their environment."""
        mark = f"DMESH_STATE_FILE={self.state_file}".encode()
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit() and int(folder.name) != os.getpid():
                try:
                    if mark in (folder / "environ").read_bytes().split(b"\0"):
                        found.append(int(folder.name))
                except OSError:  # gone meanwhile, or somebody else's
                    continue
        return found

    def stop(self) -> int:
        """Tell it to drain, and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(GUARD)
        self._reader.join(GUARD)
        return code

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._logged:
                self.log.append(line.rstrip())
                self._logged.notify_all()


@contextmanager
def up(folder: Path, *arguments: str, temporary: Path | None = None) -> Iterator[Up]:
    """A mesh of one's own, with its temporary files in `temporary`, or in `folder`. At the end nothing of it is left, whatever
    has become of it."""
    state_file = folder / "up.json"
    process = subprocess.Popen(
        [*DMESH, "up", "--json", "--port", "0", *arguments],
        env=environment(state_file) | {"TMPDIR": str(temporary or folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a process group of its own, for tests that press Ctrl-C
    )
    with process:
        try:
            mesh = Up(process, state_file)
            yield mesh
            mesh.stop()
        finally:
            process.kill()
    assert mesh.processes() == []


def ended(pids: list[int]) -> None:
    """Return when all these processes have ended, and fail if they do not."""
    for pid in pids:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            readable, _, _ = select.select([handle], [], [], GUARD)
            assert readable, f"process {pid} lives on"
        finally:
            os.close(handle)
