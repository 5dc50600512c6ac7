"""The three services as processes of their own, for a policy of the benchmark's."""

from __future__ import annotations

import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.process import started
from benchmarks.stop_client import events_of
from deadlinemesh.policy import hash_key, new_key

__all__ = ["Mesh", "meshed"]

HOPS = ("tool-runner", "llm-proxy", "orchestrator")


@dataclass(frozen=True, slots=True)
class Mesh:
    """A mesh that runs, with one tenant called `bench`."""

    target: str
    metadata: tuple[tuple[str, str], ...]
    _folder: Path

    def events(self, hop: str, *kinds: str) -> list[dict[str, Any]]:
        """What a hop has told so far, of these kinds."""
        return [event for event in events_of(self._folder / f"{hop}.events") if event["event"] in kinds]


@asynccontextmanager
async def meshed(policy: dict[str, Any]) -> AsyncIterator[Mesh]:
    """Run a mesh for the block. `policy` needs no tenants."""
    key = new_key("bench")
    tenants = {"bench": {"tier": next(iter(policy["tiers"])), "api_keys": [hash_key(key)]}}
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        file = folder / "policy.yaml"
        file.write_text(json.dumps({**policy, "tenants": tenants}))  # JSON is YAML
        common = {
            "DMESH_LISTEN": "127.0.0.1:0",
            "DMESH_POLICY_FILE": str(file),
            "DMESH_MESH_TOKEN": "benchmark",
            "DMESH_DRAIN_SECONDS": "0",
            "DMESH_LOG_LEVEL": "ERROR",
        }
        targets: dict[str, str] = {}
        for hop in HOPS:
            own = {"DMESH_EVENTS_FILE": str(folder / f"{hop}.events"), **targets}
            ready = await stack.enter_async_context(
                started("deadlinemesh.cli", "serve", hop, "--announce", environment=common | own)
            )
            targets[f"DMESH_{hop.upper().replace('-', '_')}"] = f"127.0.0.1:{ready['port']}"
        yield Mesh(targets["DMESH_ORCHESTRATOR"], (("authorization", f"Bearer {key}"),), folder)
