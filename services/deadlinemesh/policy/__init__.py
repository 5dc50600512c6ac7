"""The policy of a mesh: tiers, tenants and their keys, models, tools and limits, all from one file.

    model.py            `Policy` and its parts: frozen values that check themselves
    file.py             `load` and `parse`: a policy, or a `PolicyError` with every problem
    problems.py         `Problem` and `PolicyError`
    source.py           YAML as plain values, with their line numbers
    pydantic_errors.py  pydantic's errors in plain words
    cross_checks.py     contradictions between the parts of a policy
    patterns.py         the regular expressions of tools' schemas, matched in bounded time
    follow.py           follows a file that changes while a process runs
    past.py             keeps removed parts of a policy for the runs that began with them
    environment.py      the environment variables that a policy names
    default.py          the embedded policy, default.yaml, and a new base for its URLs

Durations are in seconds. The file has them as 250ms, 30s, 5m, 1h or a number of seconds.
"""

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
    "TenantPolicy",
    "TierPolicy",
    "ToolsPolicy",
    "default_policy",
    "load",
    "located",
    "parse",
    "refuse_what_stands",
    "text_in",
    "unset",
    "url_arguments",
    "with_http_base",
]
