"""URL templates: `https://host/customers/{customer}`. The policy has checked their form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from deadlinemesh.policy.model import url_arguments

__all__ = ["UnfitArgument", "UrlTemplate", "as_text"]


class UnfitArgument(ValueError):
    """An argument that would lead to another endpoint than the template's."""


class UrlTemplate:
    """A URL with `{argument}` parts, which are filled in percent-encoded."""

    def __init__(self, template: str) -> None:
        parts = urlsplit(template)
        self.origin = f"{parts.scheme}://{parts.netloc}".lower()
        """Scheme, host and port: what connections are counted by."""
        self.arguments = frozenset(url_arguments(template))
        self._path, _, self._query = template.partition("?")

    def fill(self, arguments: Mapping[str, Any]) -> str:
        """The URL for these arguments. Raises UnfitArgument for one that would change the path's shape."""
        for name in url_arguments(self._path):
            if as_text(arguments[name]) in ("", ".", ".."):
                raise UnfitArgument(f"{name}: must not be empty, '.' or '..'")
        path = _filled(self._path, arguments)
        if any(segment in (".", "..") for segment in path.split("/")):
            raise UnfitArgument("arguments: together they must not make a '.' or '..' of a path")
        return f"{path}?{_filled(self._query, arguments)}" if self._query else path


def as_text(value: Any) -> str:
    """A JSON value as it stands in a URL: strings as they are, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _filled(part: str, arguments: Mapping[str, Any]) -> str:
    for name in url_arguments(part):
        # One after the other is safe: what is filled in has its braces encoded, so it makes no new place.
        part = part.replace(f"{{{name}}}", quote(as_text(arguments[name]), safe="", errors="replace"))
    return part
