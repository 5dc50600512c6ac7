"""API keys: their creation, their stored hashes, and the tenant of a key.

A key has 192 random bits, so a search for the key of a hash is impossible, and one unsalted SHA-256
protects it. Salt and slow hashes protect values that people choose, such as passwords. Here they
would only cost time on each call, and prevent the look-up of a tenant by its hash.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from deadlinemesh.policy.model import Policy, TierPolicy

__all__ = ["Credentials", "Tenant", "hash_key", "new_key", "with_fresh_keys"]


def hash_key(key: str) -> str:
    """The stored form of `key` in a policy file: `sha256:` and its hexadecimal digest."""
    # surrogatepass: any bytes that a caller sends as a key have a hash, and raise no exception.
    return "sha256:" + hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def new_key(tenant_id: str) -> str:
    """A new random key: `dm_<tenant>_` and 32 URL-safe characters. The prefix names its tenant."""
    return f"dm_{tenant_id}_{secrets.token_urlsafe(24)}"


@dataclass(frozen=True, slots=True)
class Tenant:
    """An authenticated customer, with all values that the edge needs to grant a run."""

    tenant_id: str
    tier: str
    tier_policy: TierPolicy
    models: tuple[str, ...]
    """Models that the tenant may use. The first is its default."""
    tools: tuple[str, ...]
    """Tools that the tenant may use. Empty: all."""

    @classmethod
    def of(cls, policy: Policy, tenant_id: str) -> Tenant:
        """The tenant with this name. Raises KeyError if the policy does not have it."""
        tenant = policy.tenants[tenant_id]
        return cls(tenant_id, tenant.tier, policy.tiers[tenant.tier], policy.models_of(tenant_id), tenant.tools)


class Credentials:
    """The tenants of a policy by their keys. Raises ValueError if two tenants share a key."""

    def __init__(self, policy: Policy) -> None:
        self._tenants: dict[str, Tenant] = {}
        for tenant_id, tenant in policy.tenants.items():
            known = Tenant.of(policy, tenant_id)
            for hashed in tenant.api_keys:
                # Possible only for a policy built in code. A file is refused before, with the line.
                if self._tenants.setdefault(hashed, known) is not known:
                    raise ValueError(f"tenants {self._tenants[hashed].tenant_id} and {tenant_id} share a key")

    def tenant_of(self, key: str) -> Tenant | None:
        """The tenant of `key`, or None.

        The time of the look-up may depend on the length of the match between two hashes. That is no
        leak: to get closer to a stored hash, a caller would have to invert SHA-256.
        """
        return self._tenants.get(hash_key(key))

    def __repr__(self) -> str:
        return f"Credentials({len(self._tenants)} keys)"


def with_fresh_keys(policy: Policy, known: Mapping[str, str] | None = None) -> tuple[Policy, dict[str, str]]:
    """The policy with one new key per tenant instead of its old ones, and the plain keys by tenant.

    A tenant in `known` gets the key from there. Keys in `known` of other tenants are returned too.
    """
    keys = {tenant_id: new_key(tenant_id) for tenant_id in policy.tenants} | dict(known or {})
    tenants = {
        tenant_id: tenant.model_copy(update={"api_keys": (hash_key(keys[tenant_id]),)})
        for tenant_id, tenant in policy.tenants.items()
    }
    return policy.model_copy(update={"tenants": tenants}), keys
