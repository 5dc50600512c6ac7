"""URL templates: `https://host/customers/{customer}/files/{file:path}`. The policy has checked their form.

Some servers decode a path before they split it, some decode it twice, and some take look-alikes of `/` for one. So an argument in a
path is refused if any such reading of it would change the path's segments. A query has none: there it is only percent-encoded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote, unquote_to_bytes, urlsplit

from deadlinemesh.policy.model import PLACEHOLDER, url_arguments

__all__ = ["UnfitArgument", "UrlTemplate", "as_text"]

MOST_DECODINGS = 4
"""Times that an argument may be percent-encoded; no honest one is more often."""

LONGEST_ARGUMENT = 8192
"""Characters of an argument in a path: servers take no longer ones, and each is read several times."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_UTF16 = re.compile(r"%[uU]([0-9a-fA-F]{4})")
"""A character as IIS knows it besides its percent-encoding."""


_HALFWIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
"""The fullwidth forms of ASCII, which some servers and file systems take for it."""


class UnfitArgument(ValueError):
    """An argument that would lead to another endpoint than the template's."""


class UrlTemplate:
    """A URL with `{argument}` and `{argument:path}` parts, which are filled in percent-encoded."""

    def __init__(self, template: str) -> None:
        parts = urlsplit(template)
        self.origin = f"{parts.scheme}://{parts.netloc}".lower()
        """Scheme, host and port: what connections are counted by."""
        self.arguments = frozenset(url_arguments(template))
        self._path, _, self._query = template.partition("?")
        self._segments = [part for part in self._path.split("/") if PLACEHOLDER.search(part)]

    def fill(self, arguments: Mapping[str, Any]) -> str:
        """The URL for these arguments. Raises UnfitArgument for one that would change the path's shape."""
        for segment in self._segments:
            for name, path in PLACEHOLDER.findall(segment):
                if unfit := _unfit(as_text(arguments[name]), bool(path)):
                    raise UnfitArgument(f"{name}: {unfit}")
            # Two of them, or one and the text beside it, may spell together what none may alone.
            if unfit := _unfit(_joined(segment, arguments), ":path}" in segment):
                names = ", ".join(url_arguments(segment))
                raise UnfitArgument(f"{names}: together with the text beside it, it {unfit}")
        path = _filled(self._path, arguments)
        return f"{path}?{_filled(self._query, arguments)}" if self._query else path


def as_text(value: Any) -> str:
    """A JSON value as it stands in a URL: strings as they are, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _unfit(text: str, path: bool) -> str:
    """Why `text` cannot be a segment of a path, or several if it is a `path`; empty if it can."""
    if len(text) > LONGEST_ARGUMENT:
        return f"must not be longer than {LONGEST_ARGUMENT} characters"
    if path and "//" in f"/{text}/":
        return "must not be empty, begin or end with '/', or have '//'"
    for number, reading in enumerate(_readings(text)):
        if number > MOST_DECODINGS:
            return "must not be percent-encoded over and over"
        if "\ufffd" in reading and "\ufffd" not in text:
            return "must not have percent-encoded bytes that are not UTF-8"
        if _CONTROL.search(reading):
            return "must not have control characters, percent-encoded or not"
        if "\\" in reading:
            return "must not have '\\', percent-encoded or not"
        if reading.count("/") > (text.count("/") if path else 0):
            return f"must not have '/', percent-encoded{'' if path else ' or not'}"
        # Some servers drop what follows a ';', and some a space at the end.
        if any(segment.partition(";")[0].strip() in ("", ".", "..") for segment in reading.split("/")):
            return "must not be empty, '.' or '..', percent-encoded or not"
    return ""


def _readings(text: str) -> Iterator[str]:
    """What a server may take `text` for: as it is, decoded, decoded again and so on, each with ASCII for what looks like it."""
    while True:
        yield text.translate(_HALFWIDTH)
        decoded = _UTF16.sub(lambda found: chr(int(found[1], 16)), text.translate(_HALFWIDTH))
        decoded = unquote_to_bytes(decoded.encode(errors="replace")).decode(errors="replace")
        if decoded == text:
            return
        text = decoded


def _joined(segment: str, arguments: Mapping[str, Any]) -> str:
    """A template's segment with its arguments as they are. What its own text encodes, the policy's author meant."""
    literals, names, _ = (PLACEHOLDER.split(segment)[part::3] for part in range(3))
    values = [as_text(arguments[name]) for name in names]
    meant = [re.sub(r"[/\\]", "_", unquote(literal)) for literal in literals]
    return "".join(text for pair in zip(meant, [*values, ""], strict=True) for text in pair)


def _filled(part: str, arguments: Mapping[str, Any]) -> str:
    def value(found: re.Match[str]) -> str:
        return quote(as_text(arguments[found[1]]), safe="/" if found[2] else "", errors="replace")

    return PLACEHOLDER.sub(value, part)
