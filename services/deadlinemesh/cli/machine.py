"""A whole mesh on this machine, each service its own process."""

from __future__ import annotations

import json
import os
import re
import secrets
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError

import deadlinemesh
from deadlinemesh.cli.folder import private_folder
from deadlinemesh.cli.output import WrongUsage
from deadlinemesh.cli.settings import CommandSettings
from deadlinemesh.cli.state import MeshState, TenantState, write_private
from deadlinemesh.cli.supervisor import Program, Supervisor
from deadlinemesh.llm_proxy.local import LocalModelServer
from deadlinemesh.policy import SHARED, OpenAIModel, Policy, default_policy, load, with_fresh_keys, with_http_base

__all__ = ["Llm", "RunningMesh", "UpOptions", "running_mesh"]

Llm = Literal["scripted", "local", "openai"]

HOST = "127.0.0.1"
"""The keys are printed: nobody but this machine may use them."""

DEMO_BASE = "http://127.0.0.1:8800"
"""Where the embedded policy's tools are; the demo world's own address takes its place."""

OPENAI_MODEL = "gpt-4o-mini"
LOCAL_SLOTS = 2


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What to start."""

    policy_file: Path | None = None
    port: int = 50051
    """Where clients go; 0 lets the system choose."""
    llm: Llm = "scripted"
    model: str = OPENAI_MODEL
    """The provider's name of the model, for `openai`."""
    traces: str = "off"
    demo_world: bool = True
    seed: int = 0
    """Of the demo world and the scripted models: same seed and same request, same answer and same waits."""


@dataclass(slots=True)
class RunningMesh:
    """A mesh that is up."""

    state: MeshState
    supervisor: Supervisor

    def refreshed(self) -> MeshState:
        """The state with the processes of now: a restarted one has another id."""
        return _with_processes(self.state, self.supervisor)


@asynccontextmanager
async def running_mesh(
    options: UpOptions, settings: CommandSettings, report: Callable[[str], None], log: Callable[[str, str], None]
) -> AsyncIterator[RunningMesh]:
    """Start a mesh, give it when it is ready, drain it in the end: from the edge inwards, because each needs those behind it.

    Raises PolicyError for a wrong policy, WrongUsage for other wrong options, ProgramFailed where nothing starts.
    """
    policy, keys = with_fresh_keys(_policy(options))
    supervisor = Supervisor(report, log)
    with private_folder() as folder:
        try:
            yield RunningMesh(await _start(folder, policy, keys, supervisor, options, settings), supervisor)
        finally:
            await supervisor.end("edge", *(_name("orchestrator", pool) for pool in policy.pools()))


async def _start(
    folder: Path,
    policy: Policy,
    keys: Mapping[str, str],
    supervisor: Supervisor,
    options: UpOptions,
    settings: CommandSettings,
) -> MeshState:
    token = secrets.token_urlsafe(24)
    token_file, policy_file = folder / "mesh-token", folder / "policy.yaml"
    write_private(token_file, token)
    world = ""
    if options.demo_world:
        child = await supervisor.start(_demo_world(options.seed))
        world = f"http://{HOST}:{child.port}"
        policy = with_http_base(policy, DEMO_BASE, world)
    policy = await _with_llm(policy, supervisor, options, settings)
    write_private(policy_file, _as_yaml(policy))
    common = {
        "DMESH_POLICY_FILE": str(policy_file),
        "DMESH_MESH_TOKEN_FILE": str(token_file),
        "DMESH_TRACES": options.traces,
        "DMESH_LOG_LEVEL": os.environ.get("DMESH_LOG_LEVEL", "WARNING"),
    }
    outermost, inner = await _start_services(policy, common, supervisor, options.port)
    state = MeshState(
        address=f"{HOST}:{outermost}",
        tenants={name: TenantState(tenant.tier, keys[name]) for name, tenant in policy.tenants.items()},
        mesh_token=token,
        inner=inner,
        demo_world=world,
        models=tuple(policy.models),
        policy_file=str(policy_file),
        pid=os.getpid(),
        processes={},
    )
    return _with_processes(state, supervisor)


async def _start_services(
    policy: Policy, common: Mapping[str, str], supervisor: Supervisor, port: int
) -> tuple[int, dict[str, str]]:
    """From the inside out. Returns the port that clients call, and the addresses of all the others by name."""
    pools = policy.pools()
    runners = [_service("tool-runner", common, pool) for pool in pools]
    children = await supervisor.start_all(_service("llm-proxy", common), *runners)
    inner = {child.name: f"{HOST}:{child.port}" for child in children}

    def orchestrator(pool: str, **own: str) -> Program:
        found = {"DMESH_LLM_PROXY": inner["llm-proxy"], "DMESH_TOOL_RUNNER": inner[_name("tool-runner", pool)]}
        return _service("orchestrator", {**common, **found, **own}, pool)

    if pools == (SHARED,):
        return (await supervisor.start(orchestrator(SHARED), port)).port, inner
    children = await supervisor.start_all(*(orchestrator(pool, DMESH_POOL=pool) for pool in pools))
    inner |= {child.name: f"{HOST}:{child.port}" for child in children}
    where = {pool: inner[_name("orchestrator", pool)] for pool in pools}
    found = {"DMESH_ORCHESTRATOR": where.pop(SHARED, ""), "DMESH_DEDICATED": json.dumps(where)}
    return (await supervisor.start(_service("edge", {**common, **found}), port)).port, inner


def _policy(options: UpOptions) -> Policy:
    policy = default_policy() if options.policy_file is None else load(options.policy_file)
    if not options.seed:
        return policy
    models = {
        name: model.model_copy(update={"seed": options.seed}) if model.provider == "scripted" else model
        for name, model in policy.models.items()
    }
    return policy.model_copy(update={"models": models})


async def _with_llm(policy: Policy, supervisor: Supervisor, options: UpOptions, settings: CommandSettings) -> Policy:
    match options.llm:
        case "local":
            child = await supervisor.start(_local_model())
            return with_default_model(policy, "local", _local_policy(child.port))
        case "openai":
            if not settings.openai_api_key:
                raise WrongUsage("--llm openai: set OPENAI_API_KEY, and OPENAI_BASE_URL for another endpoint")
            fields: dict[str, Any] = {"provider": "openai", "model": options.model}
            if settings.openai_base_url:
                fields["base_url"] = settings.openai_base_url
            try:
                return with_default_model(policy, "openai", OpenAIModel(**fields))
            except ValidationError as error:
                raise WrongUsage(f"--llm openai: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
        case _:
            return policy


def with_default_model(policy: Policy, name: str, model: OpenAIModel) -> Policy:
    """The policy with one more model, which comes first for every tenant."""
    others = {known: one for known, one in policy.models.items() if known != name}
    tenants = {
        tenant_id: tenant.model_copy(update={"models": (name, *(one for one in tenant.models if one != name))})
        if tenant.models
        else tenant
        for tenant_id, tenant in policy.tenants.items()
    }
    return policy.model_copy(update={"models": {name: model, **others}, "tenants": tenants})


def _as_yaml(policy: Policy) -> str:
    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True  # a policy file may have none

    return yaml.dump(policy.model_dump(mode="json"), Dumper=Dumper, sort_keys=False, allow_unicode=True)


def _with_processes(state: MeshState, supervisor: Supervisor) -> MeshState:
    fields = {name: getattr(state, name) for name in MeshState.__slots__ if name != "processes"}
    return MeshState(**fields, processes={name: child.pid for name, child in supervisor.children.items()})


def _name(service: str, pool: str) -> str:
    return service if pool == SHARED else f"{service}:{pool}"


def _service(service: str, environment: Mapping[str, str], pool: str = SHARED) -> Program:
    return Program(
        name=_name(service, pool),
        command=lambda port: _tied("deadlinemesh.cli", "serve", service, "--announce"),
        port_in=_announced,
        environment=lambda port: _environment({**environment, "DMESH_LISTEN": f"{HOST}:{port}"}),
    )


def _announced(line: str) -> int | None:
    try:
        return int(json.loads(line)["port"])
    except (ValueError, TypeError, KeyError):
        return None


def _demo_world(seed: int) -> Program:
    return Program(
        name="demo-world",
        command=lambda port: _tied(
            "deadlinemesh.testing.demo_world", "--host", HOST, "--port", str(port), "--seed", str(seed)
        ),
        port_in=_port_of_url,
        environment=lambda port: _environment({}),
    )


def _local_model() -> Program:
    return Program(
        name="local-model",
        # It watches its standard input by itself.
        command=lambda port: (
            *(sys.executable, "-m", "deadlinemesh.llm_proxy.local"),
            *("--host", HOST, "--port", str(port), "--slots", str(LOCAL_SLOTS)),
        ),
        port_in=_port_of_url,
        environment=lambda port: _environment({}),
    )


def _local_policy(port: int) -> OpenAIModel:
    process: Any = None  # the supervisor has it
    return LocalModelServer(process, f"http://{HOST}:{port}", LOCAL_SLOTS).policy


def _port_of_url(line: str) -> int | None:
    match = re.search(r"http://[^\s/:]+:(\d+)", line)
    return int(match[1]) if match else None


def _tied(module: str, *arguments: str) -> Sequence[str]:
    return (sys.executable, "-m", "deadlinemesh.cli.tied", module, *arguments)


def _environment(own: Mapping[str, str]) -> Mapping[str, str]:
    # The children import the package from where this process has it, installed or not.
    root = str(Path(deadlinemesh.__file__).parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, **own}
