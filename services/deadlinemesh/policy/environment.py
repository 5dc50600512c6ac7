"""The environment variables that a policy names, and the effects of missing ones.

They are not part of the policy, and need not be set where it is checked. Only the services should
have them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from deadlinemesh.policy.model import OpenAIModel, Policy
from deadlinemesh.policy.problems import Fault

__all__ = ["missing_keys", "secret", "unset_variables"]


def secret(variable: str, environ: Mapping[str, str] = os.environ) -> str:
    """The value of `variable` for a header; empty if it is not set.

    White space around it is removed: mounted secrets often have a line end. Raises ValueError for a
    value that no header can hold. The error does not repeat the value.
    """
    value = environ.get(variable, "").strip()
    if not (value.isascii() and value.isprintable()):
        raise ValueError(f"the value of {variable} has characters that no header may have")
    return value


def missing_keys(policy: Policy, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The models without a key in `environ`, each with the variable that should hold it."""
    named = {name: model.api_key_env for name, model in policy.models.items() if isinstance(model, OpenAIModel)}
    return {name: variable for name, variable in named.items() if variable and not environ.get(variable, "").strip()}


def unset_variables(policy: Policy, environ: Mapping[str, str] = os.environ) -> Iterator[Fault]:
    """Yield a fault for every variable missing in `environ`: its place and the effect."""
    missing = missing_keys(policy, environ)
    what = (
        "refuses every call to this model" if len(missing) < len(policy.models) else "does not start: no model is left"
    )
    for name, variable in missing.items():
        yield Fault(("models", name, "api_key_env"), f"{variable} is not set here: an llm-proxy without it {what}")
    for name, tool in policy.tools.http.items():
        for header, variable in tool.headers_env.items():
            if not environ.get(variable, "").strip():
                reason = f"{variable} is not set here: a tool-runner without it does not start"
                yield Fault(("tools", "http", name, "headers_env", header), reason)
