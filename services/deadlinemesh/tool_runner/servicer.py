"""The tool-runner's gRPC servicer: maps messages to the vocabulary and back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

import httpx

from deadlinemesh.deadline import SYSTEM_CLOCK, Background, Clock
from deadlinemesh.policy import GoOver, Rest
from deadlinemesh.policy.model import Policy, ToolsPolicy
from deadlinemesh.telemetry import Telemetry
from deadlinemesh.tool_runner.cache import KeptResults, MemoryCache, ResultCache
from deadlinemesh.tool_runner.kinds.connections import pooled_client
from deadlinemesh.tool_runner.registry import Registry
from deadlinemesh.tool_runner.service import ToolService
from deadlinemesh.tool_runner.workers.keeper import Keeper
from deadlinemesh.transport.codec import tool_event_to_wire, tool_spec_to_wire
from deadlinemesh.v1 import tool_runner_pb2, tool_runner_pb2_grpc
from deadlinemesh.vocabulary.hops import TOOL_RUNNER

__all__ = ["ToolRunnerServicer", "build"]


class ToolRunnerServicer(tool_runner_pb2_grpc.ToolRunnerServiceServicer):
    """The tool-runner's gRPC servicer.

    The inbound interceptor sets the context, ends calls on time and maps errors.
    """

    def __init__(
        self,
        service: ToolService,
        registry_of: Callable[[Policy, Registry], Registry] = Registry.from_policy,
        keeping: Callable[[Policy], KeptResults | None] = lambda _: None,
    ) -> None:
        """`registry_of(policy, before)` makes the tools of a new policy.

        `keeping` makes its result cache.
        """
        self.service = service
        self._registry_of = registry_of
        self._keeping = keeping

    async def CallTool(  # the name is the contract's
        self, request: tool_runner_pb2.CallToolRequest, context: Any
    ) -> AsyncIterator[tool_runner_pb2.CallToolResponse]:
        async with aclosing(self.service.call(request.name, request.arguments_json, request.call_id)) as events:
            async for event in events:
                yield tool_event_to_wire(event)

    async def ListTools(
        self, request: tool_runner_pb2.ListToolsRequest, context: Any
    ) -> tool_runner_pb2.ListToolsResponse:
        return tool_runner_pb2.ListToolsResponse(tools=[tool_spec_to_wire(spec) for spec in self.service.specs()])

    def prepared(self, policy: Policy) -> GoOver:
        """Make the tools of `policy`. Returns the function that applies them.

        The Rest that this function returns closes the connections of the old registry. Raises
        InvalidRequest if the tools are not valid.
        """
        registry = self._registry_of(policy, self.service.registry)

        def go_over() -> Rest:
            limits = policy.limits
            rest = self.service.replace(registry, limits.message_bytes, self._keeping(policy), limits.longest_arguments)
            with suppress(OSError):  # the first call that needs it reports the error
                self.warm()
            return rest

        return go_over

    def warm(self) -> None:
        """Start the keeper of workers, so that the first call need not wait for it.

        Raises OSError if that is not possible.
        """
        self.service.warm()

    async def aclose(self) -> None:
        """End all processes and close all connections. Call it when the server has stopped."""
        await self.service.aclose()


def build(
    policy: Policy,
    clock: Clock = SYSTEM_CLOCK,
    telemetry: Telemetry | None = None,
    background: Background | None = None,
    cache: ResultCache | None = None,
    http_client: Callable[[ToolsPolicy], httpx.AsyncClient] = pooled_client,
    keeper: Callable[[], Keeper] = Keeper,
) -> ToolRunnerServicer:
    """A tool-runner for `policy`.

    `background` is the hop's background work, in which results are written; without it no results
    are kept. `cache` replaces the embedded store. Such a store outlives a change of policy, and its
    entries are used until they expire. `http_client` makes the client that HTTP tools share.
    `keeper` makes the keeper that starts worker processes.

    Raises InvalidRequest with every violation if the policy's tools are not valid.
    """

    def keeping(policy: Policy) -> KeptResults | None:
        if background is None or (cache is None and not policy.tools.cache_bytes):
            return None
        store = MemoryCache(policy.tools.cache_bytes, clock) if cache is None else cache
        return KeptResults(store, background, policy.tools, telemetry or Telemetry(), TOOL_RUNNER)

    registry_of = partial(
        Registry.from_policy, http_client=http_client, clock=clock, telemetry=telemetry, keeper=keeper
    )
    service = ToolService(
        registry_of(policy), policy.limits.message_bytes, clock, keeping(policy), policy.limits.longest_arguments
    )
    return ToolRunnerServicer(service, registry_of, keeping)
