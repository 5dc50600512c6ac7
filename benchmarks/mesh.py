"""The three services as processes of their own, for a policy of the benchmark's."""

from __future__ import annotations

import json
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.process import started
from benchmarks.stop.client import events_of
from deadlinemesh.identity.keys import hash_key, new_key

__all__ = ["Mesh", "meshed"]

HOPS = ("tool-runner", "llm-proxy", "orchestrator")


@dataclass(frozen=True, slots=True)
class Mesh:
    """A mesh that runs."""

    target: str
    metadata_of: Mapping[str, tuple[tuple[str, str], ...]]
    """What proves who calls, by tenant."""
    pids: Mapping[str, int]
    """The services' processes, by name."""
    folder: Path
    """Where it keeps its files while it runs."""

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Of the first tenant."""
        return next(iter(self.metadata_of.values()))

    def events(self, hop: str, *kinds: str) -> list[dict[str, Any]]:
        """What a hop has told so far, of these kinds."""
        return [event for event in events_of(self.folder / f"{hop}.events") if event["event"] in kinds]


@asynccontextmanager
async def meshed(
    policy: dict[str, Any],
    tenants: Sequence[str] = ("bench",),
    programs: Mapping[str, Sequence[str]] | None = None,
    *,
    events: bool = True,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[Mesh]:
    """Run a mesh for the block. `policy` needs no tenants: each of `tenants` is in its first tier.

    `programs` are modules and arguments to start in place of `dmesh serve NAME --announce`, by service. `{folder}` in a value of
    `environment` is where the mesh keeps its files.
    """
    keys = {tenant: new_key(tenant) for tenant in tenants}
    tier = next(iter(policy["tiers"]))
    known = {tenant: {"tier": tier, "api_keys": [hash_key(key)]} for tenant, key in keys.items()}
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        file = folder / "policy.yaml"
        file.write_text(json.dumps({**policy, "tenants": known}))  # JSON is YAML
        common = {
            "DMESH_LISTEN": "127.0.0.1:0",
            "DMESH_POLICY_FILE": str(file),
            "DMESH_MESH_TOKEN": "benchmark",
            "DMESH_DRAIN_SECONDS": "0",
            "DMESH_LOG_LEVEL": "ERROR",
            **{name: value.format(folder=folder) for name, value in (environment or {}).items()},
        }
        targets: dict[str, str] = {}
        pids: dict[str, int] = {}
        for hop in HOPS:
            told = {"DMESH_EVENTS_FILE": str(folder / f"{hop}.events")} if events else {}
            module, *arguments = (programs or {}).get(hop, ("deadlinemesh.cli", "serve", hop, "--announce"))
            ready = await stack.enter_async_context(
                started(module, *arguments, environment={**common, **told, **targets})
            )
            targets[f"DMESH_{hop.upper().replace('-', '_')}"] = f"127.0.0.1:{ready['port']}"
            pids[hop] = ready["pid"]
        metadata = {tenant: (("authorization", f"Bearer {key}"),) for tenant, key in keys.items()}
        yield Mesh(targets["DMESH_ORCHESTRATOR"], metadata, pids, folder)
