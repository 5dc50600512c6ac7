"""The tools of a policy, and the tenants that may use each."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import httpx

from deadlinemesh.admission import Bulkhead, InUse, Share
from deadlinemesh.deadline import SYSTEM_CLOCK, Clock
from deadlinemesh.errors import InvalidRequest, NotFound, Violation, choices, shown
from deadlinemesh.policy.environment import secret
from deadlinemesh.policy.model import HttpToolPolicy, Policy, ToolsPolicy
from deadlinemesh.telemetry import Telemetry
from deadlinemesh.tool_runner.arguments import ArgumentsReader
from deadlinemesh.tool_runner.kinds.connections import OriginConnections, pooled_client
from deadlinemesh.tool_runner.kinds.http import HttpTool
from deadlinemesh.tool_runner.kinds.process import ProcessTool
from deadlinemesh.tool_runner.kinds.python import PythonTool
from deadlinemesh.tool_runner.kinds.url import UrlTemplate
from deadlinemesh.tool_runner.outcome import Tool
from deadlinemesh.tool_runner.tool import definition_of
from deadlinemesh.tool_runner.workers.keeper import Keeper
from deadlinemesh.tool_runner.workers.pool import Workers
from deadlinemesh.vocabulary import ToolSpec

__all__ = ["NotHere", "Registry"]


class NotHere(Violation):
    """A module that this process cannot import.

    It may be installed in the tool-runner's environment.
    """

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class _Places:
    """The HTTP connections and the workers that calls wait for.

    A tool-runner has only one set, for all its policies. Two sets would double the limits during a
    change of policy.
    """

    connections: OriginConnections
    workers: Workers


class Registry:
    """Tools by name, with the HTTP client, connections and workers that they share.

    `aclose` ends these when the last call is over. A registry that replaces another can be made in
    a thread, but `take_place_of` must run on the event loop.
    """

    @classmethod
    def from_policy(
        cls,
        policy: Policy,
        before: Registry | None = None,
        *,
        http_client: Callable[[ToolsPolicy], httpx.AsyncClient] = pooled_client,
        environ: Mapping[str, str] = os.environ,
        clock: Clock = SYSTEM_CLOCK,
        telemetry: Telemetry | None = None,
        keeper: Callable[[], Keeper] = Keeper,
    ) -> Registry:
        """A registry of all tools that `policy` names.

        `environ` has the environment variables that the policy names. `telemetry` records each wait
        for a connection or a worker. `keeper` makes the keeper of `Workers`. With `before`, the
        tools share the connections and workers of `before`. They belong to the new registry after
        `take_place_of(before)`.

        Raises InvalidRequest with every violation found. Each names its place in the policy file.
        """
        client = http_client(policy.tools)
        places = None if before is None else before._places
        if places is None:
            bulkhead = partial(Bulkhead, clock=clock, on_wait=None if telemetry is None else telemetry.record)
            places = _Places(OriginConnections(policy, bulkhead), Workers(policy, bulkhead, keeper, environ))
        violations: list[Violation] = []
        found: dict[str, Tool] = {}
        for field, tool in _candidates(policy.tools, client, places, environ, violations):
            other = found.setdefault(tool.spec.name, tool)
            if other is not tool and other.origin != tool.origin:
                what = f"the name {tool.spec.name!r} is taken twice: by {other.origin} and by {tool.origin}"
                violations.append(Violation(field, what))
        if not any(isinstance(one, NotHere) for one in violations):  # else these may define them
            violations += _unknown(policy, found)
        if violations:
            raise InvalidRequest(violations)
        allowed = {tenant_id: tenant.tools for tenant_id, tenant in policy.tenants.items()}
        return cls(found, allowed, client, places, policy)

    def take_place_of(self, before: Registry, shares: Mapping[str, Share]) -> None:
        """Take over the connections and workers of `before`, including their holders and waiters.

        `shares` are the tiers' shares.
        """
        if self._places is not None and self.policy is not None:
            before._places = None  # `before` must not close them any more
            self._places.connections.reconfigure(self.policy, shares)
            self._places.workers.reconfigure(self.policy, shares)

    def __init__(
        self,
        tools: Mapping[str, Tool],
        allowed: Mapping[str, Sequence[str]],
        client: httpx.AsyncClient | None = None,
        places: _Places | None = None,
        policy: Policy | None = None,
    ) -> None:
        """`allowed` names each tenant's tools; an empty list allows all.

        Raises ValueError for a schema that cannot be used.
        """
        self._tools = {name: (tools[name], _arguments_of(tools[name])) for name in sorted(tools)}
        self._allowed = {tenant: frozenset(names) for tenant, names in allowed.items()}
        self._client = client
        self._places = places
        self.policy = policy
        """The policy that defines these tools; None for a registry that was made without one."""
        self.in_use = InUse()
        """Each call uses the registry until it is over."""

    def specs(self, tenant_id: str) -> tuple[ToolSpec, ...]:
        """The tools that the tenant may use, in alphabetical order.

        Raises NotFound for an unknown tenant.
        """
        if tenant_id not in self._allowed:
            raise NotFound([Violation("tenant_id", f"the tool-runner's policy knows no tenant {shown(tenant_id)}")])
        allowed = self._allowed[tenant_id]
        return tuple(tool.spec for name, (tool, _) in self._tools.items() if not allowed or name in allowed)

    def knows(self, tenant_id: str) -> bool:
        """True if the policy has the tenant."""
        return tenant_id in self._allowed

    def allows(self, tenant_id: str, name: str) -> bool:
        """True if the tool exists and the tenant may use it."""
        allowed = self._allowed.get(tenant_id)
        return allowed is not None and name in self._tools and (not allowed or name in allowed)

    def has(self, name: str) -> bool:
        """True if the tool exists, for any tenant."""
        return name in self._tools

    def tool(self, name: str) -> tuple[Tool, ArgumentsReader]:
        """The tool of this name, and the reader of its arguments."""
        return self._tools[name]

    def find(self, tenant_id: str, name: str) -> tuple[Tool, ArgumentsReader]:
        """A tool and the reader of its arguments.

        Raises NotFound, naming the tools that the tenant may use.
        """
        names = [spec.name for spec in self.specs(tenant_id)]
        if name not in names:
            raise NotFound([Violation("name", f"there is no tool {shown(name)}; {choices(names)}")])
        return self._tools[name]

    def warm(self) -> None:
        """Start the keeper now, so that the first call of a plain function need not wait for it.

        Does nothing without such functions. Raises OSError if the start is not possible.
        """
        if self._places is not None and any(isinstance(tool, ProcessTool) for tool, _ in self._tools.values()):
            self._places.workers.warm()

    async def aclose(self, within: float | None = None) -> None:
        """Wait until no call uses the registry, at most `within` seconds; then close its resources.

        Ends the workers, unless another registry has taken them over, and closes the HTTP
        connections.
        """
        await self.in_use.ended(within)
        if self._places is not None:
            await self._places.workers.aclose()
        if self._client is not None:
            await self._client.aclose()


def _unknown(policy: Policy, found: Mapping[str, Tool]) -> Iterator[Violation]:
    for tenant_id, tenant in policy.tenants.items():
        for index, name in enumerate(tenant.tools):
            if name not in found:
                field = f"tenants.{tenant_id}.tools[{index}]"
                yield Violation(field, f"{name!r} is not a tool; {choices(sorted(found))}")


def _candidates(
    tools: ToolsPolicy,
    client: httpx.AsyncClient,
    places: _Places,
    environ: Mapping[str, str],
    violations: list[Violation],
) -> Iterator[tuple[str, Tool]]:
    for index, module_name in enumerate(tools.modules):
        field = f"tools.modules[{index}]"
        try:
            offered = list(_offered(importlib.import_module(module_name), places.workers))
        except (Exception, SystemExit) as error:  # anything may be raised; nothing is awaited here
            # `@tool` raises TypeError for a function that cannot be a tool. That fails on every
            # machine, not only here.
            kind = Violation if isinstance(error, TypeError) else NotHere
            violations.append(kind(field, f"{module_name} cannot be imported: {type(error).__name__}: {error}"))
            continue
        if not offered:
            violations.append(Violation(field, f"{module_name} has no tools: decorate functions with @tool"))
        for tool in offered:
            try:
                _arguments_of(tool)
            except ValueError as error:
                violations.append(Violation(field, str(error)))
            yield field, tool
    for name, http in tools.http.items():
        field = f"tools.http.{name}"
        url = UrlTemplate(http.url)
        headers, missing = _headers(http, environ)
        wrong = [*_wrong(http, url), *missing]
        violations += [Violation(f"{field}.{part}", why) for part, why in wrong]
        if not wrong:
            yield field, HttpTool(name, http, url, headers, client, places.connections)


def _arguments_of(tool: Tool) -> ArgumentsReader:
    try:
        return ArgumentsReader(tool.spec.schema)
    except ValueError as error:
        raise ValueError(f"the arguments of {tool.spec.name} ({tool.origin}): {error}") from error


def _offered(module: ModuleType, workers: Workers) -> Iterator[Tool]:
    """The tools that the module defines, and the imported ones that it names in `__all__`.

    An import alone offers nothing.
    """
    public = getattr(module, "__all__", ())
    for name, value in vars(module).items():
        definition = definition_of(value)
        if definition is not None and (definition.function.__module__ == module.__name__ or name in public):
            yield ProcessTool(definition, workers) if definition.blocks else PythonTool(definition)


def _wrong(http: HttpToolPolicy, url: UrlTemplate) -> Iterator[tuple[str, str]]:
    """Violations that the checks of a policy file find too, for policies not made from a file."""
    try:
        ArgumentsReader(http.arguments)
    except ValueError as error:
        yield "arguments", str(error)
    if http.cache_for and not http.idempotent:
        yield "cache_for", "only an idempotent tool's results may be kept; say idempotent: true, or no cache_for"
    for name in sorted(url.arguments - set(http.arguments.get("required", []))):
        yield "url", f"{{{name}}} could be missing from a call; list it in arguments.required"


def _headers(http: HttpToolPolicy, environ: Mapping[str, str]) -> tuple[dict[str, str], list[tuple[str, str]]]:
    headers, missing = {}, []
    for header, variable in http.headers_env.items():
        value = ""
        try:
            value = secret(variable, environ)
            why = "" if value else f"the environment variable {variable} is not set"
        except ValueError as error:
            why = str(error)
        if why:
            missing.append((f"headers_env.{header}", why))
        headers[header] = value
    return headers, missing
