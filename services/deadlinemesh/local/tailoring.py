"""Fits a policy to the mesh on this machine: with fresh keys, the demo world and a chosen model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml

from deadlinemesh.identity.keys import with_fresh_keys
from deadlinemesh.policy import OpenAIModel, Policy, with_http_base

__all__ = ["DEMO_BASE", "Tailor", "as_yaml", "with_default_model"]

DEMO_BASE = "http://127.0.0.1:8800"
"""The base URL of the embedded policy's tools. The address of the demo world replaces it."""


@dataclass(slots=True)
class Tailor:
    """Fits each new policy to the same mesh. A tenant keeps its key."""

    seed: int = 0
    """Seed of the scripted models. 0: they keep their own."""
    demo_world: str = ""
    """The URL of the demo world; empty if there is none."""
    model: tuple[str, OpenAIModel] | None = None
    """Name and model of a model to add as the first one for every tenant."""
    keys: dict[str, str] = field(default_factory=dict)
    """The plain API key of each tenant, past ones included."""

    def fit(self, policy: Policy) -> Policy:
        """The policy that this mesh will run."""
        policy, self.keys = with_fresh_keys(policy, self.keys)
        if self.seed:
            policy = _with_seed(policy, self.seed)
        if self.demo_world:
            policy = with_http_base(policy, DEMO_BASE, self.demo_world)
        if self.model is not None:
            policy = with_default_model(policy, *self.model)
        return policy


def with_default_model(policy: Policy, name: str, model: OpenAIModel) -> Policy:
    """The policy with one more model, as the first one for every tenant."""
    others = {known: one for known, one in policy.models.items() if known != name}
    tenants = {
        tenant_id: tenant.model_copy(update={"models": (name, *(one for one in tenant.models if one != name))})
        if tenant.models
        else tenant
        for tenant_id, tenant in policy.tenants.items()
    }
    return policy.model_copy(update={"models": {name: model, **others}, "tenants": tenants})


def as_yaml(policy: Policy) -> str:
    """The text of a policy file for `policy`."""

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True  # aliases are not allowed in a policy file

    return yaml.dump(policy.model_dump(mode="json"), Dumper=Dumper, sort_keys=False, allow_unicode=True)


def _with_seed(policy: Policy, seed: int) -> Policy:
    models = {
        name: model.model_copy(update={"seed": seed}) if model.provider == "scripted" else model
        for name, model in policy.models.items()
    }
    return policy.model_copy(update={"models": models})
