"""The policy that comes with the package: everything embedded, nothing to install and no key to have."""

from __future__ import annotations

from importlib import resources

from deadlinemesh.policy.file import parse
from deadlinemesh.policy.model import HttpToolPolicy, Policy

__all__ = ["default_policy", "with_http_base"]


def default_policy() -> Policy:
    """What `default.yaml` says. Nobody knows a key of its tenants: see `with_fresh_keys`."""
    return parse(resources.files("deadlinemesh.policy").joinpath("default.yaml").read_text("utf-8"), "default.yaml")


def with_http_base(policy: Policy, old: str, new: str) -> Policy:
    """The policy with the base `old` of its HTTP tools' URLs replaced by `new`, such as `http://127.0.0.1:8800`.

    Tools of other bases stay as they are; a base ends where a path or a query begins, so port 880 is none of 8800.
    Raises pydantic's ValidationError where a new URL is none.
    """
    old, new = old.rstrip("/"), new.rstrip("/")

    def moved(tool: HttpToolPolicy) -> HttpToolPolicy:
        rest = tool.url.removeprefix(old)
        if not tool.url.startswith(old) or (rest and rest[0] not in "/?"):
            return tool
        return HttpToolPolicy.model_validate(tool.model_dump() | {"url": new + rest})

    http = {name: moved(tool) for name, tool in policy.tools.http.items()}
    return policy.model_copy(update={"tools": policy.tools.model_copy(update={"http": http})})
