"""The llm-proxy behind gRPC: maps messages to the vocabulary and back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any

from deadlinemesh.deadline import SYSTEM_CLOCK, Clock
from deadlinemesh.errors import Violation
from deadlinemesh.llm_proxy.checking import check
from deadlinemesh.llm_proxy.coalescing import coalesced
from deadlinemesh.llm_proxy.providers import Provider, providers_of
from deadlinemesh.llm_proxy.service import ModelService
from deadlinemesh.policy import GoOver
from deadlinemesh.policy.model import Policy
from deadlinemesh.telemetry import Telemetry
from deadlinemesh.transport.codec import turn_event_to_wire, turn_from_wire
from deadlinemesh.v1 import llm_proxy_pb2, llm_proxy_pb2_grpc
from deadlinemesh.vocabulary import TurnRequest

__all__ = ["LlmProxyServicer", "build"]


def build(
    policy: Policy,
    clock: Clock = SYSTEM_CLOCK,
    providers: Mapping[str, Provider] | None = None,
    telemetry: Telemetry | None = None,
) -> LlmProxyServicer:
    """The servicer for `policy`. `providers`, by the models' names, replace those of the policy.

    A model without its key in the environment refuses its turns. Raises ValueError if no model is
    usable.
    """
    if providers is None:
        providers = providers_of(policy.models)
    return LlmProxyServicer(ModelService(policy, providers, clock, telemetry))


class LlmProxyServicer(llm_proxy_pb2_grpc.LlmProxyServiceServicer):
    """Serves a `ModelService` over gRPC.

    The inbound interceptor opens the scope of each call and maps the errors.
    """

    def __init__(self, service: ModelService) -> None:
        self.service = service

    async def Generate(
        self, request: llm_proxy_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[llm_proxy_pb2.GenerateResponse]:
        async with aclosing(coalesced(self.service.generate(await _turn(request)))) as events:
            async for event in events:
                yield turn_event_to_wire(event)

    async def ListModels(
        self, request: llm_proxy_pb2.ListModelsRequest, context: Any
    ) -> llm_proxy_pb2.ListModelsResponse:
        return llm_proxy_pb2.ListModelsResponse(
            models=[
                llm_proxy_pb2.Model(
                    name=name,
                    provider=model.provider,
                    slots=model.slots if self.service.is_usable(name) else 0,
                    max_output_tokens=model.max_output_tokens,
                )
                for name, model in self.service.models().items()
            ]
        )

    def prepared(self, policy: Policy) -> GoOver:
        """Make the providers of `policy`. Its Rest closes the old policy's.

        Raises ValueError if no model of it is usable, because keys or proxies are missing.
        """
        return partial(self.service.replace, policy, providers_of(policy.models))

    async def aclose(self) -> None:
        """Close the providers as soon as no call is being served."""
        await self.service.aclose()


async def _turn(request: llm_proxy_pb2.GenerateRequest) -> TurnRequest:
    found: list[Violation] = []
    turn = await turn_from_wire(request, found)
    if found:
        check(turn, found)
    return turn
