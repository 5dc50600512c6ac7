"""One model turn: wait for a slot, stream from the provider, account for the time."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from deadlinemesh.admission import Bulkhead, InUse
from deadlinemesh.deadline import Clock, Ledger, Phase, Successive, current
from deadlinemesh.deadline.scope import REPORT_ORPHAN_AFTER
from deadlinemesh.errors import MeshError, NotFound, UpstreamFailed, Violation, choices
from deadlinemesh.llm_proxy.conversation import TextDelta, ToolCallReady, TurnEnded, TurnRequest, Writing, check
from deadlinemesh.llm_proxy.providers import Provider
from deadlinemesh.llm_proxy.providers.unusable import UnusableProvider
from deadlinemesh.policy.model import ModelPolicy, Policy
from deadlinemesh.telemetry import Telemetry

__all__ = ["HOP", "ModelService", "TurnFinished", "TurnProgress", "TurnStarted"]

HOP = "llm-proxy"

WRITING_EVERY = 0.2
"""Seconds between two signs of life of a model that says nothing."""


@dataclass(frozen=True, slots=True)
class TurnStarted:
    """A slot was obtained after `queued` seconds."""

    model: str
    queued: float


@dataclass(frozen=True, slots=True)
class TurnFinished:
    """How the turn ended, and where this hop's time went, in seconds."""

    ended: TurnEnded
    elapsed: float
    spent: Mapping[Phase, float]


TurnProgress = TurnStarted | TextDelta | Writing | ToolCallReady | TurnFinished


class ModelService:
    """The models of one policy and the providers behind them, both by the models' names."""

    def __init__(
        self, policy: Policy, providers: Mapping[str, Provider], clock: Clock, telemetry: Telemetry | None = None
    ) -> None:
        self._clock = clock
        self._on_wait = None if telemetry is None else telemetry.record
        self._slots: dict[str, Bulkhead] = {}
        self._use(policy, providers)

    def _use(self, policy: Policy, providers: Mapping[str, Provider]) -> None:
        self._policy = policy
        self._providers = _Providers(providers)
        shares, admission = policy.shares(by_model_queue=True), policy.admission
        old, self._slots = self._slots, {}
        for name, model in policy.models.items():
            # A model that stays keeps its slots, with those that wait for them and what was learned of them.
            slots = old.get(name) or Bulkhead(f"model {name}", model.slots, clock=self._clock, on_wait=self._on_wait)
            slots.resize(model.slots, shares=shares, guard=admission.normal_part, most_waiting=admission.most_waiting)
            self._slots[name] = slots

    def replace(self, policy: Policy, providers: Mapping[str, Provider]) -> Coroutine[Any, Any, None]:
        """Use these for turns to come. Returns what closes the old providers, when the turns that began with them are over."""
        old = self._providers
        self._use(policy, providers)
        return old.aclose()

    def models(self) -> dict[str, ModelPolicy]:
        """The models that the current tenant may use, by name; the first is its default."""
        tenant = current().tenant_id
        if tenant not in self._policy.tenants:
            known = choices(self._policy.tenants)
            raise NotFound(
                [Violation("tenant", f"this llm-proxy's policy knows no tenant {tenant!r}: {known}")], hop=HOP
            )
        return {name: self._policy.models[name] for name in self._policy.models_of(tenant)}

    def is_usable(self, model: str) -> bool:
        """False for a model that takes no turns, because its key is missing."""
        return not isinstance(self._providers.by_model[model], UnusableProvider)

    async def generate(self, turn: TurnRequest) -> AsyncGenerator[TurnProgress, None]:
        """Run one turn for the current tenant. Errors are those of the contract, with the phase they happened in.

        Closing the generator stops the provider and frees the slot before it returns.
        """
        offered = self.models()
        if turn.model not in offered:
            raise NotFound([Violation("model", f"{turn.model!r} is unknown or not yours: {choices(offered)}")], hop=HOP)
        check(turn)
        limit = offered[turn.model].max_output_tokens
        turn = replace(turn, max_output_tokens=min(turn.max_output_tokens or limit, limit))
        ledger = Ledger(self._clock, current().started_at)
        phases = Successive(ledger, Phase.LLM_QUEUE)
        providers, slots = self._providers, self._slots[turn.model]
        try:
            with providers.in_use:
                async with slots.slot() as slot:
                    phases.enter(Phase.LLM_FIRST_TOKEN)
                    yield TurnStarted(turn.model, slot.waited)
                    async with aclosing(providers.by_model[turn.model].stream(turn)) as events:
                        told_at = -math.inf
                        async for event in events:
                            phases.enter(Phase.LLM_STREAM)
                            if isinstance(event, Writing):
                                now = self._clock.monotonic()
                                if now - told_at < WRITING_EVERY:
                                    continue
                                told_at = now
                            else:
                                slot.useful()  # what is said so far can be answered with, if the rest must be cut
                            if isinstance(event, TurnEnded):
                                break
                            yield event
                        else:
                            raise UpstreamFailed(f"the provider of {turn.model} ended its stream without saying why")
            phases.leave()
            yield TurnFinished(event, *ledger.balance())
        except MeshError as error:
            error.hop, error.phase = error.hop or HOP, error.phase or phases.now or ""
            raise

    async def aclose(self) -> None:
        """Close every provider, once no turn is running but orphans."""
        await self._providers.aclose(REPORT_ORPHAN_AFTER)


class _Providers:
    """The providers of one policy, by the models' names."""

    def __init__(self, by_model: Mapping[str, Provider]) -> None:
        self.by_model = by_model
        self.in_use = InUse()

    async def aclose(self, within: float | None = None) -> None:
        """Wait until no turn uses them, or for `within` seconds, then close them."""
        await self.in_use.ended(within)
        for provider in self.by_model.values():
            await provider.aclose()
