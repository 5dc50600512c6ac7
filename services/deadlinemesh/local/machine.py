"""A whole mesh on this machine. Each service is a separate process."""

from __future__ import annotations

import json
import os
import re
import secrets
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

import deadlinemesh
from deadlinemesh.errors import WrongUsage
from deadlinemesh.hosting import policy_status
from deadlinemesh.hosting.private_files import replace_private, write_private
from deadlinemesh.hosting.settings import CommandSettings
from deadlinemesh.local.folder import private_folder
from deadlinemesh.local.model_server import LocalModelServer
from deadlinemesh.local.state import MeshState, TenantState
from deadlinemesh.local.supervisor import Program, Supervisor
from deadlinemesh.local.tailoring import Tailor, as_yaml
from deadlinemesh.policy import SHARED, GoOver, OpenAIModel, Policy, PolicyStatus, default_policy, refuse_what_stands
from deadlinemesh.vocabulary.hops import EDGE, LLM_PROXY, ORCHESTRATOR, TOOL_RUNNER

__all__ = ["Llm", "RunningMesh", "UpOptions", "child_environment", "running_mesh", "tied"]

Llm = Literal["scripted", "local", "openai"]

HOST = "127.0.0.1"
"""The loopback address. The mesh prints its keys, so only this machine may use them."""

MESH = "dmesh up"
"""Name in the status of the policy file given to the mesh. The services get a file fitted to this
machine."""

OPENAI_MODEL = "gpt-4o-mini"
LOCAL_SLOTS = 2


@dataclass(frozen=True, slots=True)
class UpOptions:
    """The options of a mesh on this machine."""

    policy: Policy | None = None
    """None for the embedded policy."""
    port: int = 50051
    """The port for clients; 0 for a free one."""
    llm: Llm = "scripted"
    model: str = OPENAI_MODEL
    """The provider's name for the model, with `openai`."""
    traces: str = "off"
    demo_world: bool = True
    seed: int = 0
    """Seed of the demo world and the scripted models.

    The same seed and request give the same answer and the same waits.
    """


class RunningMesh:
    """A running mesh."""

    def __init__(self, state: MeshState, supervisor: Supervisor, policy: Policy, tailor: Tailor) -> None:
        self.supervisor = supervisor
        self._state = state
        self._policy = policy
        self._tailor = tailor

    @property
    def state(self) -> MeshState:
        """The state with the present tenants and processes. A restarted process has a new id."""
        processes = {name: child.pid for name, child in self.supervisor.children.items()}
        return replace(
            self._state,
            tenants={
                name: TenantState(tenant.tier, self._tailor.keys[name]) for name, tenant in self._policy.tenants.items()
            },
            models=tuple(self._policy.models),
            processes=processes,
        )

    def prepared(self, policy: Policy) -> GoOver:
        """Prepare a new policy. Raises ValueError if it needs a restart of the services.

        The returned function writes the policy. The services apply it in about a second.
        """
        refuse_what_stands(self._policy, policy)
        fitted = self._tailor.fit(policy)
        text = as_yaml(fitted)

        def go_over() -> None:
            replace_private(Path(self._state.policy_file), text)
            self._policy = fitted

        return go_over

    def tell(self, status: PolicyStatus) -> None:
        """Write the status of the policy file given to the mesh, for `dmesh policy status`."""
        policy_status.write(_status_file(Path(self._state.policy_file).parent, MESH), MESH, status)


@asynccontextmanager
async def running_mesh(
    options: UpOptions, settings: CommandSettings, report: Callable[[str], None], log: Callable[[str, str], None]
) -> AsyncIterator[RunningMesh]:
    """Start a mesh, yield it when it is ready, and drain it in the end.

    The edge is drained first and inner services last, as each service needs those behind it. Raises
    WrongUsage for wrong options, and ProgramFailed if a program does not start.
    """
    supervisor = Supervisor(report, log, adopts=True)
    policy = default_policy() if options.policy is None else options.policy
    with private_folder() as folder:
        try:
            yield await _start(folder, policy, supervisor, options, settings)
        finally:
            await supervisor.end(EDGE, *(_name(ORCHESTRATOR, pool) for pool in policy.pools()))


async def _start(
    folder: Path, policy: Policy, supervisor: Supervisor, options: UpOptions, settings: CommandSettings
) -> RunningMesh:
    token = secrets.token_urlsafe(24)
    token_file, policy_file = folder / "mesh-token", folder / "policy.yaml"
    write_private(token_file, token)
    tailor = Tailor(options.seed)
    if options.demo_world:
        child = await supervisor.start(_demo_world(options.seed))
        tailor.demo_world = f"http://{HOST}:{child.port}"
    tailor.model = await _model(supervisor, options, settings)
    policy = tailor.fit(policy)
    write_private(policy_file, as_yaml(policy))
    common = {
        "DMESH_POLICY_FILE": str(policy_file),
        "DMESH_MESH_TOKEN_FILE": str(token_file),
        "DMESH_TRACES": options.traces,
        "DMESH_LOG_LEVEL": os.environ.get("DMESH_LOG_LEVEL", "WARNING"),
    }
    outermost, inner = await _start_services(policy, common, supervisor, options.port)
    state = MeshState(
        address=f"{HOST}:{outermost}",
        tenants={},
        mesh_token=token,
        inner=inner,
        demo_world=tailor.demo_world,
        models=(),
        policy_file=str(policy_file),
        pid=os.getpid(),
        processes={},
    )
    return RunningMesh(state, supervisor, policy, tailor)


async def _start_services(
    policy: Policy, common: Mapping[str, str], supervisor: Supervisor, port: int
) -> tuple[int, dict[str, str]]:
    """Start the services, inner ones first.

    Returns the port for clients, and the addresses of the other services by name.
    """
    pools = policy.pools()
    runners = [_service(TOOL_RUNNER, common, pool) for pool in pools]
    children = await supervisor.start_all(_service(LLM_PROXY, common), *runners)
    inner = {child.name: f"{HOST}:{child.port}" for child in children}

    def orchestrator(pool: str, **own: str) -> Program:
        found = {"DMESH_LLM_PROXY": inner[LLM_PROXY], "DMESH_TOOL_RUNNER": inner[_name(TOOL_RUNNER, pool)]}
        return _service(ORCHESTRATOR, {**common, **found, **own}, pool)

    if pools == (SHARED,):
        return (await supervisor.start(orchestrator(SHARED), port)).port, inner
    children = await supervisor.start_all(*(orchestrator(pool, DMESH_POOL=pool) for pool in pools))
    inner |= {child.name: f"{HOST}:{child.port}" for child in children}
    where = {pool: inner[_name(ORCHESTRATOR, pool)] for pool in pools}
    found = {"DMESH_ORCHESTRATOR": where.pop(SHARED, ""), "DMESH_DEDICATED": json.dumps(where)}
    return (await supervisor.start(_service(EDGE, {**common, **found}), port)).port, inner


async def _model(
    supervisor: Supervisor, options: UpOptions, settings: CommandSettings
) -> tuple[str, OpenAIModel] | None:
    match options.llm:
        case "local":
            child = await supervisor.start(_local_model())
            return "local", _local_policy(child.port)
        case "openai":
            if not settings.openai_api_key:
                raise WrongUsage("--llm openai: set OPENAI_API_KEY, and OPENAI_BASE_URL for another endpoint")
            fields: dict[str, Any] = {"provider": "openai", "model": options.model}
            if settings.openai_base_url:
                fields["base_url"] = settings.openai_base_url
            try:
                return "openai", OpenAIModel(**fields)
            except ValidationError as error:
                raise WrongUsage(f"--llm openai: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
        case _:
            return None


def _name(service: str, pool: str) -> str:
    return service if pool == SHARED else f"{service}:{pool}"


def _status_file(folder: Path, name: str) -> Path:
    return folder / f"{name.replace(':', '-')}.policy-status"


def _service(service: str, environment: Mapping[str, str], pool: str = SHARED) -> Program:
    name = _name(service, pool)
    folder = Path(environment["DMESH_POLICY_FILE"]).parent
    environment = {**environment, "DMESH_POLICY_STATUS_FILE": str(_status_file(folder, name))}
    return Program(
        name=name,
        command=lambda port: tied("deadlinemesh.cli", "serve", service, "--announce"),
        port_in=_announced,
        environment=lambda port: child_environment({**environment, "DMESH_LISTEN": f"{HOST}:{port}"}),
    )


def _announced(line: str) -> int | None:
    try:
        return int(json.loads(line)["port"])
    except (ValueError, TypeError, KeyError):
        return None


def _demo_world(seed: int) -> Program:
    return Program(
        name="demo-world",
        command=lambda port: tied("deadlinemesh.demo_world", "--host", HOST, "--port", str(port), "--seed", str(seed)),
        port_in=_port_of_url,
        environment=lambda port: child_environment({}),
    )


def _local_model() -> Program:
    return Program(
        name="local-model",
        # It watches its standard input by itself, so it need not be `tied`.
        command=lambda port: (
            *(sys.executable, "-m", "deadlinemesh.local.model_server"),
            *("--host", HOST, "--port", str(port), "--slots", str(LOCAL_SLOTS)),
        ),
        port_in=_port_of_url,
        environment=lambda port: child_environment({}),
    )


def _local_policy(port: int) -> OpenAIModel:
    process: Any = None  # the supervisor has it
    return LocalModelServer(process, f"http://{HOST}:{port}", LOCAL_SLOTS).policy


def _port_of_url(line: str) -> int | None:
    match = re.search(r"http://[^\s/:]+:(\d+)", line)
    return int(match[1]) if match else None


def tied(module: str, *arguments: str) -> Sequence[str]:
    """The command of a process that ends with this one.

    This process must keep the standard input of the new one open.
    """
    return (sys.executable, "-m", "deadlinemesh.local.tied", module, *arguments)


def child_environment(own: Mapping[str, str]) -> Mapping[str, str]:
    """The environment of a child process: this process's variables, and its `own`."""
    # The children import the package from the same place as this process, installed or not.
    root = str(Path(deadlinemesh.__file__).parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, **own}
