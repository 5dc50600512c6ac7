"""A policy file's text."""

from __future__ import annotations

import yaml

from deadlinemesh.identity.callers import ApiKeys
from deadlinemesh.policy import Policy, PolicyError, parse

MAX_BYTES = 65536
MOST_CHARACTERS = 200_000
"""Of all that is said of a file with 64 KB."""


def target(data: bytes) -> None:
    text = data.decode("utf-8-sig", "replace")
    try:
        policy = parse(text, "policy.yaml")
    except PolicyError as refused:
        assert refused.problems
        lines = len(text.splitlines()) + 1
        assert all(0 <= one.line <= lines and one.reason for one in refused.problems)
        assert len(str(refused)) <= MOST_CHARACTERS, len(str(refused))
        assert len(str(refused).splitlines()) == len(refused.problems)
        return
    _check(policy)


def _check(policy: Policy) -> None:
    """A policy that is accepted can be used, and written and read again."""
    ApiKeys(policy)
    policy.shares(by_model_queue=True)
    assert policy.pools()
    for tenant in policy.tenants:
        for model in policy.models_of(tenant):
            policy.shortener_of(tenant, model)
            assert model not in policy.fallbacks_of(tenant, model)
    written = yaml.safe_dump(policy.model_dump(mode="json"), allow_unicode=True)
    assert parse(written, "again") == policy
