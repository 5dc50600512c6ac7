"""A key is known by its hash alone, and tells which tenant calls."""

from __future__ import annotations

import dataclasses
import hashlib
import re

import pytest

from deadlinemesh.identity.callers import ApiKeys
from deadlinemesh.identity.keys import hash_key, new_key, with_fresh_keys
from deadlinemesh.policy import Policy, ScriptedModel, TenantPolicy, TierPolicy, default_policy

TIER = TierPolicy(run_budget=30, iterations=2)


def policy_of(**tenants: TenantPolicy) -> Policy:
    models = {name: ScriptedModel(provider="scripted") for name in ("demo", "fast")}
    return Policy(tiers={"free": TIER}, tenants=tenants, models=models)


def test_a_key_is_stored_as_its_sha256() -> None:
    assert hash_key("dm_acme_x") == "sha256:" + hashlib.sha256(b"dm_acme_x").hexdigest()


def test_new_keys_name_their_tenant_and_are_never_alike() -> None:
    keys = {new_key("acme") for _ in range(100)}
    assert len(keys) == 100
    assert all(re.fullmatch(r"dm_acme_[A-Za-z0-9_-]{32}", key) for key in keys)


def test_a_key_leads_to_its_tenant_with_all_that_a_grant_needs() -> None:
    narrow = TenantPolicy(tier="free", api_keys=(hash_key("a1"), hash_key("a2")), models=("fast",), tools=("clock",))
    credentials = ApiKeys(policy_of(acme=narrow, bolt=TenantPolicy(tier="free", api_keys=(hash_key("b"),))))
    acme, bolt = credentials.tenant_of("a1"), credentials.tenant_of("b")
    assert acme is not None
    assert bolt is not None
    assert acme is credentials.tenant_of("a2")
    assert (acme.tenant_id, acme.tier, acme.tier_policy) == ("acme", "free", TIER)
    assert (acme.models, acme.tools) == (("fast",), ("clock",))
    assert (bolt.models, bolt.tools) == (("demo", "fast"), ())


@pytest.mark.parametrize("key", ["", "nobody", "dm_acme_", hash_key("a"), "A", "a ", "\udcff", "\x00", "a" * 100_000])
def test_any_other_key_leads_nowhere(key: str) -> None:
    credentials = ApiKeys(policy_of(acme=TenantPolicy(tier="free", api_keys=(hash_key("a"),))))
    assert credentials.tenant_of(key) is None


def test_a_tenant_cannot_be_changed() -> None:
    tenant = ApiKeys(policy_of(acme=TenantPolicy(tier="free", api_keys=(hash_key("a"),)))).tenant_of("a")
    assert tenant is not None
    with pytest.raises(dataclasses.FrozenInstanceError):
        tenant.tier = "enterprise"  # type: ignore[misc]  # that it cannot be assigned is what is tested


def test_a_key_that_two_tenants_share_is_refused() -> None:
    shared = TenantPolicy(tier="free", api_keys=(hash_key("a"),))
    with pytest.raises(ValueError, match="acme and bolt share a key"):
        ApiKeys(policy_of(acme=shared, bolt=shared))


def test_fresh_keys_take_the_place_of_all_others() -> None:
    old = TenantPolicy(tier="free", api_keys=(hash_key("a1"), hash_key("a2")), models=("fast",))
    policy = policy_of(acme=old, bolt=TenantPolicy(tier="free", api_keys=(hash_key("b"),)))
    fresh, keys = with_fresh_keys(policy)
    credentials = ApiKeys(fresh)
    assert [(name, credentials.tenant_of(key)) for name, key in keys.items()] == [
        ("acme", credentials.tenant_of(keys["acme"])),
        ("bolt", credentials.tenant_of(keys["bolt"])),
    ]
    assert {name: tenant.tenant_id for name, key in keys.items() if (tenant := credentials.tenant_of(key))} == {
        "acme": "acme",
        "bolt": "bolt",
    }
    assert [credentials.tenant_of(key) for key in ("a1", "a2", "b")] == [None] * 3
    assert fresh.tenants["acme"].models == ("fast",)
    assert policy.tenants["acme"] == old


def test_the_embedded_policy_gets_a_key_for_each_of_its_tenants() -> None:
    fresh, keys = with_fresh_keys(default_policy())
    credentials = ApiKeys(fresh)
    tiers = {name: tenant.tier for name, key in keys.items() if (tenant := credentials.tenant_of(key))}
    assert tiers == {"acme": "enterprise", "bolt": "professional", "cora": "free"}


def test_credentials_do_not_print_what_they_hold() -> None:
    assert repr(ApiKeys(default_policy())) == "ApiKeys(3 keys)"
