"""The policy of the package: everything is embedded, without installation or keys."""

from __future__ import annotations

from importlib import resources

from deadlinemesh.policy.file import parse
from deadlinemesh.policy.model import HttpToolPolicy, Policy

__all__ = ["default_policy", "with_http_base"]


def default_policy() -> Policy:
    """The policy in `default.yaml`. The keys of its tenants are unknown: see `with_fresh_keys`."""
    return parse(resources.files("deadlinemesh.policy").joinpath("default.yaml").read_text("utf-8"), "default.yaml")


def with_http_base(policy: Policy, old: str, new: str) -> Policy:
    """The policy with the base `old` of its HTTP tools' URLs replaced by `new`.

    A base is such as `http://127.0.0.1:8800`. It ends before the path or the query, so port 880
    does not match 8800. Tools with other bases stay unchanged. Raises pydantic's ValidationError if
    a new URL is invalid.
    """
    old, new = old.rstrip("/"), new.rstrip("/")

    def moved(tool: HttpToolPolicy) -> HttpToolPolicy:
        rest = tool.url.removeprefix(old)
        if not tool.url.startswith(old) or (rest and rest[0] not in "/?"):
            return tool
        return HttpToolPolicy.model_validate(tool.model_dump() | {"url": new + rest})

    http = {name: moved(tool) for name, tool in policy.tools.http.items()}
    return policy.model_copy(update={"tools": policy.tools.model_copy(update={"http": http})})
