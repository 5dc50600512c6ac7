"""One model turn: waits for a slot, streams from the provider, accounts for the time."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from itertools import chain

from deadlinemesh.admission import Bulkhead, InUse
from deadlinemesh.deadline import Clock, PhaseTrack, current
from deadlinemesh.deadline.lowlevel import REPORT_ORPHAN_AFTER
from deadlinemesh.errors import MeshError, NotFound, UpstreamFailed, Violation, choices, shown
from deadlinemesh.llm_proxy.checking import check
from deadlinemesh.llm_proxy.providers import Provider
from deadlinemesh.llm_proxy.providers.unusable import UnusableProvider
from deadlinemesh.policy import Past, Rest
from deadlinemesh.policy.model import ModelPolicy, Policy
from deadlinemesh.telemetry import Telemetry
from deadlinemesh.vocabulary import (
    HopSpend,
    Phase,
    TurnEvent,
    TurnFinished,
    TurnRequest,
    TurnStarted,
    Writing,
    phase_ledger,
)
from deadlinemesh.vocabulary.hops import LLM_PROXY

__all__ = ["ModelService"]

WRITING_EVERY = 0.2
"""Seconds between two `Writing` events of a model that writes no text."""


class ModelService:
    """Runs turns of the models of a policy. `providers` are by the models' names."""

    def __init__(
        self, policy: Policy, providers: Mapping[str, Provider], clock: Clock, telemetry: Telemetry | None = None
    ) -> None:
        self._clock = clock
        self._on_wait = None if telemetry is None else telemetry.record
        self._past: Past[_Models] = Past(clock)
        self._now = self._models_of(policy, providers, {})

    def _models_of(self, policy: Policy, providers: Mapping[str, Provider], before: Mapping[str, Bulkhead]) -> _Models:
        shares, admission = self._past.shares(policy, by_model_queue=True), policy.admission
        slots: dict[str, Bulkhead] = {}
        for name, model in policy.models.items():
            # A model that stays keeps its bulkhead, with its waiters and its learned service times.
            one = before.get(name) or Bulkhead(f"model {name}", model.slots, clock=self._clock, on_wait=self._on_wait)
            one.resize(model.slots, shares=shares, guard=admission.normal_part, most_waiting=admission.most_waiting)
            slots[name] = one
        return _Models(policy, providers, slots)

    def replace(self, policy: Policy, providers: Mapping[str, Provider]) -> Rest:
        """Use `policy` and `providers` for later turns. Returns the Rest, to close the old ones.

        Turns of runs that began under an older policy still find the models that `policy` takes
        away.
        """
        old = self._now
        needed_for = self._past.keep(old, old.policy, policy)
        self._now = self._models_of(policy, providers, old.slots)
        return Rest(old.aclose, needed_for)

    def models(self) -> dict[str, ModelPolicy]:
        """The models that the current tenant may use, by name. The first is its default.

        Raises NotFound if no policy, in force or past, has the tenant.
        """
        tenant = current().tenant_id
        for models in chain((self._now,), self._past):
            if tenant in models.policy.tenants:
                return {name: models.policy.models[name] for name in models.policy.models_of(tenant)}
        raise NotFound([Violation("tenant", f"this llm-proxy's policy has no tenant {shown(tenant)}")], hop=LLM_PROXY)

    def is_usable(self, model: str) -> bool:
        """False if the model's key is missing or its proxy cannot be used.

        It takes no turns then.
        """
        return not isinstance(self._now.providers.get(model), UnusableProvider)

    def _holding(self, model: str) -> _Models:
        """The policy's models with `model` for the current tenant.

        Raises NotFound, with the names of the tenant's models.
        """
        tenant = current().tenant_id
        for models in chain((self._now,), self._past):
            if tenant in models.policy.tenants and model in models.policy.models_of(tenant):
                # The policy in force may still have the model, but not for this tenant.
                return self._now if model in self._now.slots else models
        known = choices(self.models())
        raise NotFound([Violation("model", f"{shown(model)} is unknown or not yours: {known}")], hop=LLM_PROXY)

    async def generate(self, turn: TurnRequest) -> AsyncGenerator[TurnEvent, None]:
        """Run one turn for the current tenant.

        Closing the generator stops the provider and frees the slot before it returns. Raises
        MeshError with its hop and phase.
        """
        models = self._holding(turn.model)
        check(turn, longest_arguments=models.policy.limits.longest_arguments)
        limit = models.policy.models[turn.model].max_output_tokens
        turn = replace(turn, max_output_tokens=min(turn.max_output_tokens or limit, limit))
        ledger = phase_ledger(self._clock, current().started_at)
        phases = PhaseTrack(ledger, Phase.LLM_QUEUE)
        try:
            with models.in_use:
                async with models.slots[turn.model].slot() as slot:
                    phases.enter(Phase.LLM_FIRST_TOKEN)
                    yield TurnStarted(turn.model, slot.waited)
                    async with aclosing(models.providers[turn.model].stream(turn)) as events:
                        told_at = -math.inf
                        async for event in events:
                            phases.enter(Phase.LLM_STREAM)
                            if isinstance(event, Writing):
                                now = self._clock.monotonic()
                                if now - told_at < WRITING_EVERY:
                                    continue
                                told_at = now
                            else:
                                slot.useful()  # from here on a cut turn has a partial answer
                            if isinstance(event, TurnFinished):
                                break
                            yield event
                        else:
                            raise UpstreamFailed(f"the provider of {turn.model} ended its stream without saying why")
            phases.leave()
            yield replace(event, spend=HopSpend(LLM_PROXY, *ledger.balance()))
        except MeshError as error:
            error.hop, error.phase = error.hop or LLM_PROXY, error.phase or phases.now or ""
            raise

    async def aclose(self) -> None:
        """Close every provider when no turn is running, or after REPORT_ORPHAN_AFTER seconds."""
        await self._now.aclose(REPORT_ORPHAN_AFTER)


class _Models:
    """The models of one policy, with their providers and slots by name."""

    def __init__(self, policy: Policy, providers: Mapping[str, Provider], slots: Mapping[str, Bulkhead]) -> None:
        self.policy = policy
        self.providers = providers
        self.slots = slots
        self.in_use = InUse()

    async def aclose(self, within: float | None = None) -> None:
        """Wait until no turn uses the providers, at most `within` seconds. Then close them."""
        await self.in_use.ended(within)
        for provider in self.providers.values():
            await provider.aclose()
