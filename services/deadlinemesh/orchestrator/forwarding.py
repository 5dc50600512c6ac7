"""The edge as a separate process, for a mesh with dedicated tenants. It grants and forwards calls.

A process that runs agents may spin or crash. It must not stand between a dedicated tenant and that
tenant's orchestrator. Messages are forwarded unparsed: nothing in them concerns the edge.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import chain
from typing import Any

import grpc

from deadlinemesh.admission import Held
from deadlinemesh.deadline import SYSTEM_CLOCK, Clock, current, narrowed_at
from deadlinemesh.errors import DeadlineSpent
from deadlinemesh.identity.grants import Grant, encode_grant
from deadlinemesh.orchestrator.memory import COPIES, Memory
from deadlinemesh.policy import GoOver, Past, Policy
from deadlinemesh.telemetry import Telemetry
from deadlinemesh.transport import MeshChannel, error_from
from deadlinemesh.v1 import orchestrator_pb2
from deadlinemesh.vocabulary.hops import EDGE, ORCHESTRATOR

__all__ = ["Forwarder"]

LAST_WORD = 0.25
"""Share of the response reserve, or of a call that is shorter than it. For that long before the
deadline the edge waits no longer, and reports that there was no answer."""

_SERVICE = orchestrator_pb2.DESCRIPTOR.services_by_name["OrchestratorService"]
_RICH_STATUS = "grpc-status-details-bin"


class Forwarder:
    """Forwards each call to the orchestrator of its tenant's pool.

    `orchestrators` are the channels by pool; each pool has one. The forwarded call has the same
    run, the same deadline, and this edge's grant. It ends when the client's call ends. The client
    gets the orchestrator's messages, initial metadata and rich status unchanged.
    """

    def __init__(
        self,
        policy: Policy,
        orchestrators: Mapping[str, MeshChannel],
        telemetry: Telemetry | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._memory = Memory(policy, telemetry or Telemetry(), EDGE)
        self._orchestrators = {name: _Pool(channel) for name, channel in orchestrators.items()}
        self._policy = policy
        self._pools: Mapping[str, _Pool] = {}
        self._past: Past[Mapping[str, _Pool]] = Past(clock)
        self.prepared(policy)()

    def prepared(self, policy: Policy) -> GoOver:
        """Prepare to forward later calls by `policy`. It must have the same pools."""
        pools = {tenant_id: self._orchestrators[policy.pool_of(tenant_id)] for tenant_id in policy.tenants}

        def go_over() -> None:
            if policy is not self._policy:
                self._past.keep(self._pools, self._policy, policy)
            self._policy, self._pools, self._reserve = policy, pools, policy.limits.response_reserve
            self._memory.reconfigure(policy)

        return go_over

    def register(self, server: Any) -> None:
        """Serve every method of the orchestrator, like the generated `add_…_to_server`."""
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        for method in _SERVICE.methods:
            if method.server_streaming:
                handlers[method.name] = grpc.unary_stream_rpc_method_handler(partial(self._stream, method.name))
            else:
                handlers[method.name] = grpc.unary_unary_rpc_method_handler(partial(self._ask, method.name))
        handler = grpc.method_handlers_generic_handler(_SERVICE.full_name, handlers)
        server.add_generic_rpc_handlers((handler,))
        server.add_registered_method_handlers(_SERVICE.full_name, handlers)

    async def _stream(self, method: str, request: bytes, context: Any) -> None:
        try:
            with self._request(request, context):
                await self._relay(method, request, context)
        except (DeadlineSpent, grpc.aio.AioRpcError) as error:
            await _pass_on(error, context)

    async def _relay(self, method: str, request: bytes, context: Any) -> None:
        async with (
            self._pool().begin(method, request, context.admitted.grant) as call,
            narrowed_at(self._answered_by()),
        ):
            await context.send_initial_metadata(await call.initial_metadata())
            async for message in call:
                await context.write(message)

    async def _ask(self, method: str, request: bytes, context: Any) -> Any:
        try:
            with self._request(request, context):
                call = self._pool().begin(method, request, context.admitted.grant)
                async with narrowed_at(self._answered_by()):
                    reply = await call
                context.admitted.grant.charge(len(reply))
                # The client may read the reply slowly.
                held = self._memory.take(current().tenant_id, COPIES * len(reply))
                context.add_done_callback(lambda _: held.release())
                return reply
        except (DeadlineSpent, grpc.aio.AioRpcError) as error:
            await _pass_on(error, context)

    def _request(self, request: bytes, context: Any) -> Held:
        grant = context.admitted.grant
        grant.charge(len(request))
        return self._memory.request(grant.tenant, len(request))

    def _pool(self) -> _Pool:
        """The current tenant's pool, also if a reload has removed the tenant since the gate."""
        tenant_id = current().tenant_id
        return next(pools[tenant_id] for pools in chain((self._pools,), self._past) if tenant_id in pools)

    def _answered_by(self) -> float:
        """The instant at which the edge answers instead of the orchestrator.

        An orchestrator that hangs cannot answer in time, and the client's own timer tells no cause.
        The instant is just before the deadline, so that a merely late orchestrator can still
        answer.
        """
        here = current()
        return here.absolute_deadline - min(self._reserve, here.remaining) * LAST_WORD


class _Pool:
    """The methods of one pool's orchestrator, as callables of its channel."""

    def __init__(self, channel: MeshChannel) -> None:
        self._methods: dict[str, Any] = {
            method.name: (channel.unary_stream if method.server_streaming else channel.unary_unary)(
                f"/{_SERVICE.full_name}/{method.name}"
            )
            for method in _SERVICE.methods
        }

    def begin(self, method: str, request: bytes, grant: Grant) -> Any:
        """Begin a call to the orchestrator, for the current context."""
        return self._methods[method](request, metadata=(encode_grant(grant),))


async def _pass_on(error: DeadlineSpent | grpc.aio.AioRpcError, context: Any) -> None:
    """End the client's call like the forwarded one.

    A status of the mesh is passed on unchanged. Any other status is mapped to an error of the mesh.
    The edge's own DeadlineSpent names the orchestrator.
    """
    if isinstance(error, DeadlineSpent):
        raise DeadlineSpent(f"the {ORCHESTRATOR} did not answer in time", hop=ORCHESTRATOR, phase="response") from None
    trailing = tuple(error.trailing_metadata() or ())
    if not any(key == _RICH_STATUS for key, _ in trailing):
        raise error_from(error, ORCHESTRATOR)
    await context.abort(error.code(), error.details() or "", trailing)
