"""The state of the mesh that `dmesh up` started, in a file for `dmesh run`.

The file has keys, so only its owner may read it.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deadlinemesh.hosting.private_files import replace_private

__all__ = ["MeshState", "TenantState", "forget", "read", "write"]


@dataclass(frozen=True, slots=True)
class TenantState:
    """The tier of a tenant, and the key made for it."""

    tier: str
    api_key: str


@dataclass(frozen=True, slots=True)
class MeshState:
    """A running mesh. Addresses are HOST:PORT."""

    address: str
    """The address for clients: of the edge if there is one, else of the orchestrator."""
    tenants: dict[str, TenantState]
    mesh_token: str
    inner: dict[str, str]
    """Addresses of the other services by name. They need the mesh token."""
    demo_world: str
    """The URL of the demo's upstreams; empty if there are none."""
    models: tuple[str, ...]
    """Names of the models. The first is the default."""
    policy_file: str
    pid: int
    """The process id of the supervisor."""
    processes: dict[str, int]
    """Process ids of the supervised programs by name."""

    def as_json(self) -> str:
        """The state as one line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> MeshState:
        """Parse the result of `as_json`. Raises ValueError for any other text."""
        try:
            fields: dict[str, Any] = json.loads(text)
            fields["tenants"] = {name: TenantState(**one) for name, one in fields["tenants"].items()}
            fields["models"] = tuple(fields["models"])
            return cls(**fields)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not the state of a mesh: {error}") from error


def write(state: MeshState, path: Path) -> None:
    """Write the state to `path`. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    replace_private(path, state.as_json() + "\n")


def read(path: Path) -> MeshState | None:
    """Read the mesh that was started last; None if it has ended.

    It has ended if the process of its supervisor has.
    """
    try:
        state = MeshState.from_json(path.read_text("utf-8"))
        os.kill(state.pid, 0)
    except (OSError, ValueError):
        return None
    return state


def forget(path: Path) -> None:
    """Remove the file, unless it describes another mesh, started later."""
    state = read(path)
    if state is not None and state.pid == os.getpid():
        path.unlink(missing_ok=True)
