"""What a process reads from its environment. The only place that does, but for the keys that policy names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from deadlinemesh.policy import SHARED
from deadlinemesh.tool_runner.workers.keeper import WORKER_UIDS
from deadlinemesh.transport import ConnectionLimits, ServerSettings
from deadlinemesh.vocabulary.hops import EDGE, ORCHESTRATOR, PORTS

__all__ = ["CommandSettings", "HopSettings"]


def _by_pool(value: Any) -> Any:
    # Read here, because pydantic-settings would tell neither the variable nor what it should be.
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(address, str) and address for address in found.values()):
        raise ValueError('write each pool\'s address as JSON, as in {"acme": "dns:///orchestrator-acme:50051"}')
    if SHARED in found:
        raise ValueError(f"{SHARED} is the pool of all others: DMESH_ORCHESTRATOR says where it is")
    return found


def _range(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    first, dash, last = value.partition("-")
    if value and not (dash and first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last) < 2**32 - 1):
        raise ValueError("write the first and the last user id, as in 61184-65519, or nothing")
    return (int(first), int(last)) if value else None


File = Annotated[Path | None, BeforeValidator(lambda value: value or None)]
"""A path. An empty variable is as good as none: it would be the folder that one happens to be in."""


class HopSettings(BaseSettings):
    """Settings of one service, from variables named DMESH_ and the field in capitals. Durations are in seconds."""

    model_config = SettingsConfigDict(env_prefix="DMESH_", frozen=True)

    listen: str = ""
    """HOST:PORT; empty means every interface and the service's own port."""
    policy_file: File = None
    """The policy; the embedded one if absent."""
    mesh_token: str = ""
    mesh_token_file: File = None
    """The secret that peers of the mesh share; one of the two is needed. The file wins: a variable may come from anywhere, such as
    a Kubernetes secret that is there for other keys."""
    llm_proxy: str = "dns:///llm-proxy:50052"
    tool_runner: str = "dns:///tool-runner:50053"
    """Where the orchestrator finds the other two."""
    pool: str = ""
    """Whose runs an orchestrator behind the edge serves: `shared`, a dedicated tenant's, or a dedicated tier's, `tier:NAME`. Empty:
    everybody's, and it is the edge itself."""
    orchestrator: str = "dns:///orchestrator:50051"
    """Where the edge finds the orchestrator of all that are not dedicated."""
    dedicated: Annotated[dict[str, str], NoDecode, BeforeValidator(_by_pool)] = {}
    """Where the edge finds the others, by pool."""
    drain_seconds: Annotated[float, Field(ge=0)] = 330.0
    """How long calls in flight may go on after SIGTERM; more than the longest tier's budget."""
    keepalive_seconds: Annotated[float, Field(gt=0)] = 20.0
    """Silence after which a peer is asked for a sign of life, and as long again until it is given up."""
    connection_age_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Age at which clients make a connection anew, and so look up who else is there; 0: never. For services behind a name whose
    addresses change."""
    request_seconds: Annotated[float, Field(gt=0)] = 15.0
    """How long a request may take to follow its headers, and a stranger's connection may be quiet."""
    connections: Annotated[int, Field(ge=1)] = 4096
    """The most connections in all; more are refused."""
    connections_per_address: Annotated[int, Field(ge=0)] = 512
    """The most of one address; 0 for no limit, behind a proxy that counts them."""
    streams: Annotated[int, Field(ge=0)] = 0
    """Calls at a time on one connection; more wait at the caller. 0: CLIENT_STREAMS where clients call, MESH_STREAMS where hops do,
    whose one connection has the calls of all tenants."""
    watches: Annotated[int, Field(ge=0)] = 1024
    """`Health/Watch` calls at a time."""
    worker_uids: Annotated[tuple[int, int] | None, NoDecode, BeforeValidator(_range)] = WORKER_UIDS
    """The first and the last user that a tool-runner which runs as root gives to worker processes, as in 61184-65519. Empty: they
    have its own."""
    dumpable: bool = False
    """Whether other processes of the same user may read the service's memory and environment, as debuggers and profilers do."""
    traces: str = "off"
    """off, file:PATH or otlp."""
    metrics: str = "off"
    """Likewise."""
    policy_status_file: File = None
    """Where to write which policy is in force, and why another was refused, for `dmesh policy status`; nowhere if absent."""
    events_file: File = None
    """Where to append every event as a JSON line; nowhere if absent."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["text", "json"] = "text"

    @model_validator(mode="after")
    def _has_a_token(self) -> HopSettings:
        if not self.mesh_token and self.mesh_token_file is None:
            raise ValueError(
                "set DMESH_MESH_TOKEN_FILE (or DMESH_MESH_TOKEN): the secret by which services know one another"
            )
        return self

    def token(self) -> str:
        """The mesh token. Raises OSError where its file cannot be read and ValueError where it is empty."""
        token = self.mesh_token if self.mesh_token_file is None else self.mesh_token_file.read_text().strip()
        if not token:
            raise ValueError(f"the mesh token in {self.mesh_token_file} is empty")
        return token

    def _is_called_by_clients(self, hop: str) -> bool:
        return hop == EDGE or (hop == ORCHESTRATOR and not self.pool)

    def server(self, hop: str, message_bytes: int, longest_budget: float) -> ServerSettings:
        """The settings of the service's server, on which a call may take `longest_budget` seconds."""
        return ServerSettings(
            listen=self.listen or f"0.0.0.0:{PORTS[hop]}",
            message_bytes=message_bytes,
            drain=self.drain_seconds,
            keepalive=self.keepalive_seconds,
            connection_age=self.connection_age_seconds,
            connection_grace=max(longest_budget, self.drain_seconds) + _CONNECTION_GRACE_S,
            connections=self.connections,
            connection_limits=ConnectionLimits(self.connections_per_address, self.request_seconds),
            streams=self.streams or (CLIENT_STREAMS if self._is_called_by_clients(hop) else MESH_STREAMS),
        )


CLIENT_STREAMS, MESH_STREAMS = 1024, 16_384

_CONNECTION_GRACE_S = 30.0
"""Seconds beyond the longest budget before an old connection is closed with the calls that are still on it."""


class CommandSettings(BaseSettings):
    """What the other commands read from the environment."""

    model_config = SettingsConfigDict(env_prefix="DMESH_", frozen=True, populate_by_name=True)

    addr: str = ""
    """The orchestrator that `dmesh run` calls, HOST:PORT; empty: the mesh that `dmesh up` started."""
    api_key: str = ""
    """The key it calls with."""
    state_file: File = None
    """Where `dmesh up` writes what it started; see `state_path`."""
    policy_status_file: File = None
    """Where a service that was started by itself writes which policy it has in force."""
    runtime_dir: File = Field(default=None, validation_alias="XDG_RUNTIME_DIR")
    openai_api_key: str = Field(default="", validation_alias="OPENAI_API_KEY")
    openai_base_url: str = Field(default="", validation_alias="OPENAI_BASE_URL")

    @property
    def state_path(self) -> Path:
        """The state file: the one that was named, else one in the user's runtime folder, else in the user's cache."""
        if self.state_file is not None:
            return self.state_file
        folder = self.runtime_dir or Path.home() / ".cache"
        return folder / "deadlinemesh" / "up.json"
