"""Who is calling: API keys, how they are stored, and the tenant behind one.

A key holds 192 random bits, so nobody can search for the one behind a hash, and a single unsalted SHA-256 protects it.
Salt and slow hashes protect what people choose, such as passwords; here they would only cost time on each call, and
forbid finding a tenant by its hash.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from deadlinemesh.policy.model import Policy, TierPolicy

__all__ = ["Credentials", "Tenant", "hash_key", "new_key", "with_fresh_keys"]


def hash_key(key: str) -> str:
    """`sha256:` and the hexadecimal digest of `key`: what the policy file stores."""
    # surrogatepass: whatever bytes a caller sent as its key, the answer is a hash that nobody has, and no exception.
    return "sha256:" + hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def new_key(tenant_id: str) -> str:
    """A fresh key: `dm_<tenant>_` and 32 random URL-safe characters. The prefix tells whose it is."""
    return f"dm_{tenant_id}_{secrets.token_urlsafe(24)}"


@dataclass(frozen=True, slots=True)
class Tenant:
    """A customer whose key was presented, with all that the edge needs to grant it a run."""

    tenant_id: str
    tier: str
    tier_policy: TierPolicy
    models: tuple[str, ...]
    """Models it may use; the first is its default."""
    tools: tuple[str, ...]
    """Tools it may use. Empty: all."""

    @classmethod
    def of(cls, policy: Policy, tenant_id: str) -> Tenant:
        """The tenant of this name. Raises KeyError where the policy has none."""
        tenant = policy.tenants[tenant_id]
        return cls(tenant_id, tenant.tier, policy.tiers[tenant.tier], policy.models_of(tenant_id), tenant.tools)


class Credentials:
    """The tenants of a policy by their keys. Raises ValueError where two of them share a key."""

    def __init__(self, policy: Policy) -> None:
        self._tenants: dict[str, Tenant] = {}
        for tenant_id, tenant in policy.tenants.items():
            known = Tenant.of(policy, tenant_id)
            for hashed in tenant.api_keys:
                # Possible only for a policy built in code: the file's check refuses it with a line.
                if self._tenants.setdefault(hashed, known) is not known:
                    raise ValueError(f"tenants {self._tenants[hashed].tenant_id} and {tenant_id} share a key")

    def tenant_of(self, key: str) -> Tenant | None:
        """The tenant whose key this is, or None.

        The look-up's time may depend on how much of a stored hash the presented one matches. That tells nothing of
        use: to bring a hash closer to a stored one, SHA-256 would have to be inverted.
        """
        return self._tenants.get(hash_key(key))

    def __repr__(self) -> str:
        return f"Credentials({len(self._tenants)} keys)"


def with_fresh_keys(policy: Policy, known: Mapping[str, str] | None = None) -> tuple[Policy, dict[str, str]]:
    """The policy with one new key for each tenant in place of all that it had, and the plain keys by tenant.

    A tenant whose key is `known` is given that one; the known keys of others are among those that are returned.
    """
    keys = {tenant_id: new_key(tenant_id) for tenant_id in policy.tenants} | dict(known or {})
    tenants = {
        tenant_id: tenant.model_copy(update={"api_keys": (hash_key(keys[tenant_id]),)})
        for tenant_id, tenant in policy.tenants.items()
    }
    return policy.model_copy(update={"tenants": tenants}), keys
