"""Tenants, and the ways to know one by the headers of its call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from deadlinemesh.errors import Unauthenticated
from deadlinemesh.identity.keys import hash_key
from deadlinemesh.policy.model import Policy, TierPolicy

__all__ = ["ApiKeys", "Authenticator", "Headers", "Tenant"]


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


class Headers(Protocol):
    """The headers of a call, over gRPC or HTTP."""

    def header(self, name: str) -> str:
        """The last value of the header `name`, in lower case; empty if there is none."""


class Authenticator(Protocol):
    """Knows tenants by the headers of their calls. It is made anew for each policy."""

    def authenticate(self, headers: Headers) -> Tenant:
        """The tenant of a call. Raises Unauthenticated, with the header that would be right."""


class ApiKeys:
    """The tenants of a policy, by API key. Raises ValueError if two tenants share a key."""

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

    def authenticate(self, headers: Headers) -> Tenant:
        """See `Authenticator.authenticate`."""
        scheme, _, key = headers.header("authorization").partition(" ")
        if not key or scheme.lower() != "bearer":
            raise Unauthenticated("send your API key as metadata `authorization: Bearer KEY`")
        tenant = self.tenant_of(key.strip())
        if tenant is None:
            raise Unauthenticated("this API key is unknown; it may have been revoked")
        return tenant

    def __repr__(self) -> str:
        return f"ApiKeys({len(self._tenants)} keys)"
