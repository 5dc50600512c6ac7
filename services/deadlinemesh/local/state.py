"""What `dmesh up` started, written where `dmesh run` finds it. It holds keys, so only its owner may read it."""

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
    """A tenant and the key that was made for it."""

    tier: str
    api_key: str


@dataclass(frozen=True, slots=True)
class MeshState:
    """A running mesh. Addresses are HOST:PORT."""

    address: str
    """Where clients go: of the edge where there is one, else of the orchestrator."""
    tenants: dict[str, TenantState]
    mesh_token: str
    inner: dict[str, str]
    """The other services by name: they want the mesh token."""
    demo_world: str
    """The URL of the demo's upstreams; empty without them."""
    models: tuple[str, ...]
    """The first is the default."""
    policy_file: str
    pid: int
    """Of the supervisor."""
    processes: dict[str, int]
    """Ids of the supervised processes by name."""

    def as_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> MeshState:
        """Raises ValueError where the text is not such a line."""
        try:
            fields: dict[str, Any] = json.loads(text)
            fields["tenants"] = {name: TenantState(**one) for name, one in fields["tenants"].items()}
            fields["models"] = tuple(fields["models"])
            return cls(**fields)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not the state of a mesh: {error}") from error


def write(state: MeshState, path: Path) -> None:
    """Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    replace_private(path, state.as_json() + "\n")


def read(path: Path) -> MeshState | None:
    """The mesh that was started last and is still up, or None. A mesh whose supervisor is gone has ended."""
    try:
        state = MeshState.from_json(path.read_text("utf-8"))
        os.kill(state.pid, 0)
    except (OSError, ValueError):
        return None
    return state


def forget(path: Path) -> None:
    """Remove the file, unless another mesh has been started since and the file tells of that one."""
    state = read(path)
    if state is not None and state.pid == os.getpid():
        path.unlink(missing_ok=True)
