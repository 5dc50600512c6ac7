"""Toxiproxy's HTTP API, as much of it as the faults need; and the faults themselves, by name."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx

__all__ = ["FAULTS", "SERVER", "Fault", "Proxy", "Toxic", "Toxiproxy", "toxiproxy"]

SERVER = "toxiproxy-server"
"""The program, as `make tools` installs it."""

GUARD = 10.0


@dataclass(frozen=True, slots=True)
class Toxic:
    """What happens to one direction of every connection of a proxy. Times are in milliseconds, as Toxiproxy has them."""

    kind: str
    stream: Literal["upstream", "downstream"]
    attributes: Mapping[str, int]


Fault = tuple[Toxic, ...]


def _both(kind: str, **attributes: int) -> Fault:
    return (Toxic(kind, "upstream", attributes), Toxic(kind, "downstream", attributes))


FAULTS: Mapping[str, Fault] = {
    # Longer than any run has: what is under way arrives when nobody waits for it any more.
    "latency of 5 to 30 s": _both("latency", latency=17_500, jitter=12_500),
    "a kilobyte a second": _both("bandwidth", rate=1),
    # Everything is lost, and after a while the connection is closed.
    "a timeout": _both("timeout", timeout=300),
    "a reset": (Toxic("reset_peer", "downstream", {"timeout": 50}),),
    # Slow, but nothing is wrong: whoever takes a part for the whole is found out.
    "slices": _both("slicer", average_size=64, size_variation=32, delay=500),
    # Nothing arrives any more in one direction, and nobody is told.
    "half open, answers lost": (Toxic("timeout", "downstream", {"timeout": 0}),),
    "half open, requests lost": (Toxic("timeout", "upstream", {"timeout": 0}),),
    "an end in the middle": (Toxic("limit_data", "downstream", {"bytes": 700}),),
}


class Proxy:
    """What stands between two ends. Its port stays the same when the end behind it moves."""

    def __init__(self, api: httpx.AsyncClient, name: str, port: int, behind: int) -> None:
        self.name = name
        self.port = port
        self.behind = behind
        """The port of what is behind it."""
        self._api = api

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def suffer(self, fault: Fault) -> None:
        """Let it go wrong from now on, on the connections that there are as well as on new ones."""
        for toxic in fault:
            await self._post(
                f"/proxies/{self.name}/toxics",
                {"type": toxic.kind, "stream": toxic.stream, "toxicity": 1.0, "attributes": dict(toxic.attributes)},
            )

    async def lead_to(self, port: int) -> None:
        """Have what is behind it be at `port`, and all be well again. Its connections are closed.

        Made anew: to take a toxic from a connection whose end has gone may hang for ever in this version of Toxiproxy.
        """
        self.behind = port
        await self.cut()
        await self._post("/proxies", {"name": self.name, "listen": self.address, "upstream": f"127.0.0.1:{port}"})

    async def cut(self) -> None:
        """Close its connections and take none."""
        (await self._api.delete(f"/proxies/{self.name}")).raise_for_status()

    async def _post(self, path: str, body: Mapping[str, Any]) -> None:
        (await self._api.post(path, json=body)).raise_for_status()


class Toxiproxy:
    """A running Toxiproxy."""

    def __init__(self, api: httpx.AsyncClient, pid: int) -> None:
        self.pid = pid
        self._api = api

    async def proxy(self, name: str, port: int) -> Proxy:
        """A new proxy before `port`."""
        body = {"name": name, "listen": "127.0.0.1:0", "upstream": f"127.0.0.1:{port}"}
        answer = (await self._api.post("/proxies", json=body)).raise_for_status()
        return Proxy(self._api, name, int(answer.json()["listen"].rpartition(":")[2]), port)


@asynccontextmanager
async def toxiproxy(program: str, folder: Path) -> AsyncIterator[Toxiproxy]:
    """Run Toxiproxy for the block."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (folder / "toxiproxy.log").open("w") as log:
        process = await asyncio.create_subprocess_exec(
            *(program, "-host", "127.0.0.1", "-port", str(port), "-seed", "1"), stdout=log, stderr=log
        )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=GUARD, trust_env=False) as api:
            async with asyncio.timeout(GUARD):
                while not await _answers(api):
                    assert process.returncode is None, (folder / "toxiproxy.log").read_text()
                    await asyncio.sleep(0.02)
            yield Toxiproxy(api, process.pid)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _answers(api: httpx.AsyncClient) -> bool:
    try:
        return (await api.get("/version")).is_success
    except httpx.ConnectError:
        return False
