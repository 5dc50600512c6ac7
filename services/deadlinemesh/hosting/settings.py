"""Settings from environment variables. Only variables named by the policy are read elsewhere."""

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
    # Parsed here, because an error of pydantic-settings names neither the variable nor a valid
    # value.
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(address, str) and address for address in found.values()):
        raise ValueError('write each pool\'s address as JSON, as in {"acme": "dns:///orchestrator-acme:50051"}')
    if SHARED in found:
        raise ValueError(f"{SHARED} is the pool of all others: DMESH_ORCHESTRATOR says where it is")
    return found


_LEAST_WORKER_UIDS = 256


def _range(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    first, dash, last = value.partition("-")
    if value and not (dash and first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last) < 2**32 - 1):
        raise ValueError("write the first and the last user id, as in 61184-65519, or nothing")
    if value and int(last) - int(first) < _LEAST_WORKER_UIDS - 1:
        raise ValueError(
            f"write at least {_LEAST_WORKER_UIDS} user ids, as in 61184-65519: no two workers should share one"
        )
    return (int(first), int(last)) if value else None


File = Annotated[Path | None, BeforeValidator(lambda value: value or None)]
"""A path. An empty variable means None: else it would be the current folder."""


class HopSettings(BaseSettings):
    """Settings of one service, from the variables DMESH_ plus the field in capitals.

    Durations are in seconds.
    """

    model_config = SettingsConfigDict(env_prefix="DMESH_", frozen=True)

    listen: str = ""
    """HOST:PORT. Empty: every IPv4 interface, and the service's default port."""
    policy_file: File = None
    """The policy file; None for the embedded policy."""
    mesh_token: str = ""
    mesh_token_file: File = None
    """The secret shared by the peers of the mesh. Either the token or its file is needed. The file
    wins: the variable may come by chance, such as from a Kubernetes secret meant for other keys."""
    llm_proxy: str = "dns:///llm-proxy:50052"
    tool_runner: str = "dns:///tool-runner:50053"
    """Targets of the llm-proxy and the tool-runner, for the orchestrator."""
    pool: str = ""
    """The pool of an orchestrator behind the edge: `shared`, the id of a dedicated tenant, or
    `tier:NAME` for a dedicated tier. Empty: it serves all tenants, and is the edge itself."""
    orchestrator: str = "dns:///orchestrator:50051"
    """Target of the orchestrator of all tenants that are not dedicated, for the edge."""
    dedicated: Annotated[dict[str, str], NoDecode, BeforeValidator(_by_pool)] = {}
    """Targets of the dedicated orchestrators by pool, for the edge."""
    drain_seconds: Annotated[float, Field(ge=0)] = 330.0
    """Time that running calls get after SIGTERM. Longer than the longest budget of a tier."""
    keepalive_seconds: Annotated[float, Field(gt=0)] = 20.0
    """Time of silence before a peer is pinged, and time that it gets to answer the ping."""
    connection_age_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Age of a connection when its client must make a new one, and so look the name up again. 0:
    never. For services behind a name with changing addresses."""
    request_seconds: Annotated[float, Field(gt=0)] = 15.0
    """Time for a request to follow its headers, and idle time of a stranger's connection."""
    connections: Annotated[int, Field(ge=1)] = 4096
    """Connections at most. More are refused."""
    connections_per_address: Annotated[int, Field(ge=0)] = 512
    """Connections of one address at most. 0: no limit, for use behind a proxy that counts them."""
    streams: Annotated[int, Field(ge=0)] = 0
    """Calls at once on one connection. More wait at the caller. 0 means CLIENT_STREAMS if clients
    call the service. Else it means MESH_STREAMS, as one connection of a hop has the calls of all
    tenants."""
    watches: Annotated[int, Field(ge=0)] = 1024
    """`Health/Watch` calls at once."""
    worker_uids: Annotated[tuple[int, int] | None, NoDecode, BeforeValidator(_range)] = WORKER_UIDS
    """The first and the last user id for worker processes, as in 61184-65519, if the tool-runner
    runs as root. Empty: they have the id of the tool-runner."""
    dumpable: bool = False
    """True if other processes of the user may read memory and environment, as debuggers do."""
    traces: str = "off"
    """Destination of traces: `off`, `file:PATH` or `otlp`."""
    metrics: str = "off"
    """Destination of metrics: `off`, `file:PATH` or `otlp`."""
    policy_status_file: File = None
    """File for the policy in force, or the reason of a refusal. None: no file.

    `dmesh policy status` reads it.
    """
    events_file: File = None
    """File for all events, one JSON line each, appended. None: no file."""
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
        """Read the mesh token.

        Raises OSError if its file cannot be read, and ValueError if it is empty.
        """
        token = self.mesh_token if self.mesh_token_file is None else self.mesh_token_file.read_text().strip()
        if not token:
            raise ValueError(f"the mesh token in {self.mesh_token_file} is empty")
        return token

    def _is_called_by_clients(self, hop: str) -> bool:
        return hop == EDGE or (hop == ORCHESTRATOR and not self.pool)

    def server(self, hop: str, message_bytes: int, longest_budget: float) -> ServerSettings:
        """The settings of the server of `hop`. Its longest call takes `longest_budget` seconds."""
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
"""Calls at once on one connection of a client, and of a hop."""

_CONNECTION_GRACE_S = 30.0
"""Seconds beyond the longest budget. Then an old connection is closed with its remaining calls."""


class CommandSettings(BaseSettings):
    """Settings of the other commands."""

    model_config = SettingsConfigDict(env_prefix="DMESH_", frozen=True, populate_by_name=True)

    addr: str = ""
    """HOST:PORT of the orchestrator for `dmesh run`. Empty: the mesh started by `dmesh up`."""
    api_key: str = ""
    """The API key for `dmesh run`."""
    state_file: File = None
    """The state file of `dmesh up`. See `state_path`."""
    policy_status_file: File = None
    """The policy status file of a service that was not started by `dmesh up`."""
    runtime_dir: File = Field(default=None, validation_alias="XDG_RUNTIME_DIR")
    openai_api_key: str = Field(default="", validation_alias="OPENAI_API_KEY")
    openai_base_url: str = Field(default="", validation_alias="OPENAI_BASE_URL")

    @property
    def state_path(self) -> Path:
        """The path of the state file: `state_file`, if set.

        Else it is in the user's runtime folder, and without one, in the user's cache.
        """
        if self.state_file is not None:
            return self.state_file
        folder = self.runtime_dir or Path.home() / ".cache"
        return folder / "deadlinemesh" / "up.json"
