"""What a mesh allows: tiers, tenants and their keys, models, tools and limits, all from one file.

    model.py        `Policy` and its parts: frozen values that check themselves
    file.py         `load` and `parse`: a policy, or a `PolicyError` with everything that is wrong and where
    problems.py     `Problem` and `PolicyError`
    source.py       YAML as plain values that remember their lines
    pydantic_errors.py  pydantic's errors in plain words
    cross_checks.py     what the parts of a policy say about one another
    patterns.py     the regular expressions of tools' schemas, matched in bounded time
    follow.py       a file that changes while a process runs
    past.py         what a reload takes away, for the runs that began with it
    environment.py  the environment variables that a policy names
    credentials.py  API keys and the `Tenant` behind one
    default.py      the embedded policy, default.yaml, and its change of address

Durations are in seconds; the file writes them as 250ms, 30s, 5m, 1h or a number of seconds.
"""

from deadlinemesh.policy.credentials import Credentials, Tenant, hash_key, new_key, with_fresh_keys
from deadlinemesh.policy.default import default_policy, with_http_base
from deadlinemesh.policy.file import load, located, parse, text_in, unset
from deadlinemesh.policy.follow import PolicyFile, PolicyStatus, Prepare, refuse_what_stands
from deadlinemesh.policy.model import (
    SHARED,
    AdmissionPolicy,
    HttpToolPolicy,
    Limits,
    ModelPolicy,
    OpenAIModel,
    Policy,
    ScriptedModel,
    TenantPolicy,
    TierPolicy,
    ToolsPolicy,
    url_arguments,
)
from deadlinemesh.policy.past import GoOver, Past, Rest
from deadlinemesh.policy.problems import PolicyError, Problem

__all__ = [
    "SHARED",
    "AdmissionPolicy",
    "Credentials",
    "GoOver",
    "HttpToolPolicy",
    "Limits",
    "ModelPolicy",
    "OpenAIModel",
    "Past",
    "Policy",
    "PolicyError",
    "PolicyFile",
    "PolicyStatus",
    "Prepare",
    "Problem",
    "Rest",
    "ScriptedModel",
    "Tenant",
    "TenantPolicy",
    "TierPolicy",
    "ToolsPolicy",
    "default_policy",
    "hash_key",
    "load",
    "located",
    "new_key",
    "parse",
    "refuse_what_stands",
    "text_in",
    "unset",
    "url_arguments",
    "with_fresh_keys",
    "with_http_base",
]
