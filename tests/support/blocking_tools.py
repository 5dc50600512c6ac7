"""Plain functions as tools: well-behaved ones, and every way of not ending that is known to us."""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from deadlinemesh.deadline import current
from deadlinemesh.tool_runner import Progress, ToolError, tool

CALLS = 0


@tool
def whoami() -> dict[str, Any]:
    """Tell about the process."""
    global CALLS
    CALLS += 1
    return {"pid": os.getpid(), "calls": CALLS}


@tool
def look(day: date | None = None) -> dict[str, Any]:
    """Tell about the call."""
    context = current()
    modules = [name for name in ("grpc", "httpx", "opentelemetry", "yaml") if name in sys.modules]
    return {
        "tenant": context.tenant_id,
        "run": context.run_id,
        "tier": context.tier,
        "deadline_at": context.absolute_deadline,
        "started_at": context.started_at,
        "main_thread": threading.current_thread() is threading.main_thread(),
        "modules": modules,
        "day": f"{day:%A}" if day else "",
        "mesh_variables": [name for name in os.environ if name.startswith("DMESH_")],
    }


@tool
def count(progress: Progress) -> list[int]:
    """Count."""
    progress(0.5, "half")
    print("this is no part of the protocol")
    os.write(1, b"neither is this\n")
    progress(1.0)
    return [1, 2]


@tool
def say(size: int) -> str:
    """Say much."""
    return "é" * size


@tool
def halve() -> dict[str, list[str]]:
    """Say half an emoji."""
    return {"a\ud83d": ["b\ud83d"]}


@tool
def chatter(progress: Progress) -> str:
    """Talk for ever."""
    while True:
        progress(0.5, str(os.getpid()))


@tool
def wait_for(port: int, progress: Progress) -> str:
    """Give what somebody will send."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        progress(0.0, str(os.getpid()))
        return connection.recv(100).decode()


@tool
def grow(mebibytes: int) -> str:
    """Hold memory."""
    global HELD
    HELD = b"x" * (mebibytes << 20)
    return "grown"


HELD = b""


class Speechless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class NoSuchCity(ToolError):
    def __init__(self, city: str) -> None:
        self.city = city

    def __str__(self) -> str:
        return f"no city {self.city}"


@tool
def fail(how: str) -> None:
    """Fail."""
    if how == "told":
        raise ToolError("busy", transient=True, retry_after=2.0)
    if how == "reset":
        raise ConnectionResetError("gone")
    if how == "exit":
        sys.exit(3)
    if how == "speechless":
        raise Speechless
    if how == "in its own way":
        raise NoSuchCity("Atlantis")
    if how == "at length":
        raise RuntimeError("😀" * 100_000 + "\ud83d")
    raise KeyError("secret_line_of_code")


@tool
def crash(how: str) -> None:
    """Take the process with it."""
    if how == "exit":
        os._exit(3)
    if how == "segfault":
        ctypes.string_at(0)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "closed":
        os.closerange(3, 100)
        while True:
            time.sleep(60)
    if how == "noise":
        for fd in range(3, 20):
            try:
                os.write(fd, b"\0" * 100)
            except OSError:
                continue
        while True:
            time.sleep(60)


@tool
def spy(pids: list[int], paths: list[str]) -> dict[str, Any]:
    """Look at all that is not one's own. Tells what could be read, or done."""
    found = []
    for pid in pids:
        for name in ("environ", "mem", "maps", "fd", "cwd"):
            with suppress(OSError):
                path = Path(f"/proc/{pid}/{name}")
                if name == "fd":
                    os.readlink(path / "0")
                elif name == "cwd":
                    os.readlink(path)
                else:
                    path.open("rb").close()
                    if name != "mem":
                        path.read_bytes()
                found.append(f"{name} of {pid}")
        with suppress(OSError):
            os.kill(pid, signal.SIGCONT)
            found.append(f"kill of {pid}")
    for one in paths:
        with suppress(OSError):
            found.append(f"{one}: {os.listdir(one) if os.path.isdir(one) else Path(one).read_text()}")
    return {"found": found}


@tool
def keep_secret() -> dict[str, Any]:
    """Write a secret wherever temporary files are kept, and tell where, and what keeps this process from others."""
    with tempfile.NamedTemporaryFile("w", delete=False) as file:
        file.write("secret of a tenant")
    Path("here").write_text("secret of a tenant")
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    return {
        "pid": os.getpid(),
        "file": file.name,
        "home": os.environ["HOME"],
        "cwd": os.getcwd(),
        "mode": os.stat(".").st_mode & 0o777,
        "uid": os.getuid(),
        "capabilities": [int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb", "CapInh")],
        "no_new_privileges": status["NoNewPrivs"],
        "environment": dict(os.environ),
        "semaphore": multiprocessing.Lock().acquire(),
        "shell": subprocess.check_output(["sh", "-c", "echo $HOME; grep -c Name: /proc/self/status"], text=True),
    }


@tool
def misnamed() -> Any:
    """Give a coroutine."""
    return asyncio.sleep(0)


def _forever() -> None:
    while True:
        time.sleep(60)


@tool
def stay(how: str, progress: Progress) -> None:
    """Never end, and tell the process ids of all that will not."""
    pids = [os.getpid()]
    if how == "sigterm":
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
    if how in ("fork", "setsid", "daemon"):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            if how != "fork":
                os.setsid()
            if how == "daemon" and os.fork():
                os._exit(0)
            os.write(write, f"{os.getpid()}".encode())
            _forever()
        if how == "daemon":
            os.waitpid(pid, 0)
        pids.append(int(os.read(read, 20)))
    if how == "shell":
        child = subprocess.Popen(
            ["sh", "-c", "trap '' TERM HUP; setsid sleep 1000 & echo $!; wait"], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        pids += [child.pid, int(child.stdout.readline())]
    if how == "swallow":
        while True:
            try:
                progress(0.0, " ".join(map(str, pids)))
                _forever()
            except BaseException:
                continue
    progress(0.0, " ".join(map(str, pids)))
    if how == "spin":
        while True:
            pass
    _forever()


@tool
def leave(how: str) -> dict[str, Any]:
    """Come back, and leave something running."""
    pids = [os.getpid()]
    if how == "thread":
        threading.Thread(target=_forever, name="left-over", daemon=True).start()
    if how == "process":
        pid = os.fork()
        if pid == 0:
            os.setsid()
            _forever()
        pids.append(pid)
    return {"pids": pids}


def _even(number: int) -> int:
    if number % 2:
        raise ValueError(f"{number} is not even")
    return number


@tool
def pick(number: Annotated[int, AfterValidator(_even)]) -> int:
    """Pick a number."""
    return number
