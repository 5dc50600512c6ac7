"""API keys: their creation and their stored hashes.

A key has 192 random bits, so a search for the key of a hash is impossible, and one unsalted SHA-256
protects it. Salt and slow hashes protect values that people choose, such as passwords. Here they
would only cost time on each call, and prevent the look-up of a tenant by its hash.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping

from deadlinemesh.policy.model import Policy

__all__ = ["hash_key", "new_key", "with_fresh_keys"]


def hash_key(key: str) -> str:
    """The stored form of `key` in a policy file: `sha256:` and its hexadecimal digest."""
    # surrogatepass: any bytes that a caller sends as a key have a hash, and raise no exception.
    return "sha256:" + hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def new_key(tenant_id: str) -> str:
    """A new random key: `dm_<tenant>_` and 32 URL-safe characters. The prefix names its tenant."""
    return f"dm_{tenant_id}_{secrets.token_urlsafe(24)}"


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
